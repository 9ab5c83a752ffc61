"""What a training leaves for tools: metrics.jsonl, samples.jsonl and TensorBoard's files."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from torch.utils.tensorboard import SummaryWriter

from dragoman.common.errors import OperationError
from dragoman.model.run import METRICS_FILE, SAMPLES_FILE, TENSORBOARD_FOLDER
from dragoman.model.training.records import Sample, cut_back, to_line

__all__ = ["Journal"]


class Journal:
    """Appends to a run folder's records. A context manager; each line is in its file, whole, once it is written."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        """With `resume_step`, what was written beyond that step is cut away, and the rest is kept."""
        self._folder, self._resume_step = folder, resume_step
        self._exits = contextlib.ExitStack()
        self.elapsed_s = 0.0  # of earlier sittings

    def __enter__(self) -> Self:
        with self._exits, self._disk_errors():
            step = self._resume_step
            for name in (METRICS_FILE, SAMPLES_FILE):
                kept = [] if step is None else cut_back(self._folder / name, step)
                self.elapsed_s = max([self.elapsed_s, *(record.get("seconds", 0.0) for record in kept)])
            self._metrics = self._open(METRICS_FILE)
            self._samples = self._open(SAMPLES_FILE)
            self._board = SummaryWriter(
                str(self._folder / TENSORBOARD_FOLDER), purge_step=None if step is None else step + 1
            )
            self._exits.callback(self._board.close)
            if step is not None:
                self.write(step, {"event": "resumed", "seconds": self.elapsed_s})
            self._exits = self._exits.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._disk_errors():
                self._exits.close()
        except OperationError:
            if error is None:  # else what ended the training says more
                raise

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl that is no figure.

        Raises:
            OperationError: the disk does not take it.
        """
        with self._disk_errors():
            self._metrics.write(to_line({"step": step, **values}))

    def record(self, step: int, figures: Mapping[str, float], elapsed_s: float) -> None:
        """Figures, to both; `elapsed_s` is the time that training took so far.

        Raises:
            OperationError: the disk does not take them.
        """
        self.write(step, {**figures, "seconds": round(elapsed_s, 3)})
        with self._disk_errors():
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """What the model made of some inputs, to samples.jsonl and, as text, to TensorBoard.

        Raises:
            OperationError: the disk does not take them.
        """
        record = {"step": step, "samples": [dataclasses.asdict(sample) for sample in samples]}
        with self._disk_errors():
            self._samples.write(to_line(record))
            for number, sample in enumerate(samples):
                self._board.add_text(f"samples/{number}", _as_markdown(sample), step)

    def _open(self, name: str) -> Any:
        mode: Literal["wb", "ab"] = "wb" if self._resume_step is None else "ab"
        # Unbuffered: closing writes nothing.
        return self._exits.enter_context((self._folder / name).open(mode, buffering=0))

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OperationError(
                f"cannot write {error.filename or self._folder / METRICS_FILE}: {error.strerror}"
            ) from error


def _as_markdown(sample: Sample) -> str:
    """Indented, text is shown as it is."""
    parts = dataclasses.asdict(sample).items()
    return "\n\n".join(
        f"{name}\n\n" + "\n".join(f"    {line}" for line in text.splitlines()) for name, text in parts
    )
