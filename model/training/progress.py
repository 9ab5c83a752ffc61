"""How far training is: the limits that end it, and what it tells the person, TensorBoard and metrics.jsonl."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch.utils.tensorboard import SummaryWriter

from common.errors import OperationError
from model.recipe import TrainingSettings
from model.run import METRICS_FILE, TENSORBOARD_FOLDER

__all__ = ["Limits", "Reporter", "StoppedBy"]


StoppedBy = Literal["max_steps", "max_minutes", "patience"]


class Limits:
    """Steps and time that training may take. The clock starts when this is made."""

    def __init__(self, settings: TrainingSettings, elapsed_s: float = 0.0) -> None:
        """`elapsed_s` is what earlier sittings took of the time."""
        self._max_steps = settings.max_steps
        self._max_s = None if settings.max_minutes is None else 60.0 * settings.max_minutes
        self._reserved_s = 0.0
        self._start_s = time.monotonic() - elapsed_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    def reserve(self, seconds: float) -> None:
        """Leave so much of the time for the validation at the end."""
        self._reserved_s = seconds

    def progress(self, step: int) -> float:
        """Share of the training that lies behind after `step` steps, at most 1: of the nearer limit.

        As long as `max_steps` is the nearer one this depends on the step alone, and with it the learning
        rate: the same seed then gives the same weights.
        """
        shares = [0.0]
        if self._max_steps is not None:
            shares.append(step / self._max_steps)
        if self._max_s is not None:
            shares.append((self.elapsed_s + self._reserved_s) / self._max_s)
        return min(1.0, max(shares))

    def reached(self, step: int) -> StoppedBy | None:
        """Which limit ends training after `step` steps, if any."""
        if self._max_steps is not None and step >= self._max_steps:
            return "max_steps"
        if self._max_s is not None and self.elapsed_s + self._reserved_s >= self._max_s:
            return "max_minutes"
        return None


class Reporter:
    """A progress bar for who watches, lines for who reads later, files for tools. A context manager."""

    def __init__(
        self, folder: Path, console: Console, *, resume_step: int | None = None, silent: bool = False
    ) -> None:
        self._silent, self._resume_step = silent, resume_step
        self._console = console
        self._metrics_path = folder / METRICS_FILE
        self._tensorboard_folder = folder / TENSORBOARD_FOLDER
        self._exits = contextlib.ExitStack()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[figures]}"),
            console=console,
            transient=True,
            refresh_per_second=4,  # drawing takes time from training
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        with self._exits, self._disk_errors():
            # Unbuffered: a line is in the file, whole, once `record` returns, and closing writes nothing.
            self._metrics = self._exits.enter_context(self._metrics_path.open("wb", buffering=0))
            self._board = SummaryWriter(str(self._tensorboard_folder))
            self._exits.callback(self._board.close)
            self._exits.enter_context(self._bar)
            self._task = self._bar.add_task("", total=1.0, figures="")
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

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """What is going on now, beside the bar."""
        self._bar.update(self._task, description=name)

    def show(self, progress: float, elapsed_s: float, loss: float, tokens_per_second: float) -> None:
        """Move the bar: `progress` in [0, 1]."""
        left_s = elapsed_s * (1.0 - progress) / progress if progress else 0.0
        figures = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {left_s:,.0f} s left"
        self._bar.update(self._task, completed=progress, figures=figures)

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Write figures to TensorBoard and metrics.jsonl.

        Raises:
            OperationError: the disk does not take them.
        """
        with self._disk_errors():
            self._metrics.write((json.dumps({"step": step, **figures}) + "\n").encode())
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OperationError(
                f"cannot write {error.filename or self._metrics_path}: {error.strerror}"
            ) from error
