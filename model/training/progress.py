"""The progress of a training, for the user and for the run folder."""

import datetime as dt
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dragoman.model.training.journal import Journal
from dragoman.model.training.records import Sample

__all__ = ["TRAINING_PHASE", "Reporter"]

TRAINING_PHASE = "training"

_SPEED_PERIOD_S = 600.0  # time left is estimated from so much of the past: steps, validations and all
_MAX_SILENCE_S = 50.0  # without a bar: the log shows that training goes on
_VALIDATION_FIGURES = {  # the first one that is measured is shown beside the bar
    "validation_sample_bleu": "BLEU {:.2f}",
    "validation_sample_exact_match": "exact match {:.1f} %",
    "validation_sample_chrf": "chrF {:.2f}",
    "validation_sample_bits_per_byte": "{:.3f} bits a byte",
    "validation_loss": "validation {:.4f}",
}


class Reporter:
    """A progress bar on a terminal, lines in a log, and files for tools. A context manager."""

    def __init__(
        self,
        folder: Path,
        console: Console,
        *,
        resume_step: int | None = None,
        silent: bool = False,
        max_steps: int | None = None,
    ) -> None:
        """Prepare to report.

        Args:
            folder: the run's.
            console: where the bar and the lines go.
            resume_step: go on with the records of an earlier sitting, up to this step.
            silent: neither show nor write anything: of several processes one speaks.
            max_steps: the limit to show beside the number of steps.
        """
        self._console = console
        self._journal = None if silent else Journal(folder, resume_step)
        self._max_steps = max_steps
        self._clock = 0.0, time.monotonic()  # training's time when it was last told, and when that was
        self._figures: dict[str, str] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[figures]}"),  # last: a narrow terminal cuts it
            console=console,
            transient=True,
            refresh_per_second=4,  # drawing takes time from training
            speed_estimate_period=_SPEED_PERIOD_S,
            disable=silent or not console.is_terminal,
        )
        self._phase = "starting"
        self._task = self._bar.add_task(self._phase, total=1.0, figures="")
        self._phase_s = self._said_s = time.monotonic()
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._journal:
            self._journal.__enter__()
            self._clock = self._journal.elapsed_s, time.monotonic()
        self._bar.start()
        if self._bar.disable and self._journal and not self._console.quiet:
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._done.set()
        if self._heart.is_alive():
            self._heart.join()
        if self._journal:
            self._journal.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._journal:
            self._said_s = time.monotonic()
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """Show the name of the current phase beside the bar."""
        self._phase, self._phase_s = name, time.monotonic()
        self._bar.update(self._task, description=name)

    def show(self, progress: float, elapsed_s: float, loss: float, tokens_per_second: float) -> None:
        """Move the bar: `progress` in [0, 1]; `elapsed_s` is training's own time, earlier sittings included."""
        self._clock = elapsed_s, time.monotonic()
        self._figures["loss"] = f"loss {loss:.4f}"
        self._figures["speed"] = f"{tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, completed=progress, figures=self._shown())

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures to TensorBoard and metrics.jsonl, with the time that training took so far.

        Raises:
            OperationError: the disk does not take them.
        """
        limit = "" if self._max_steps is None else f" of {self._max_steps:,}"
        self._figures["step"] = f"step {step:,}{limit}"
        measured = next((name for name in _VALIDATION_FIGURES if name in figures), None)
        if measured:
            self._figures["validation"] = _VALIDATION_FIGURES[measured].format(figures[measured])
        self._bar.update(self._task, figures=self._shown())
        if self._journal:
            self._journal.record(step, figures, self._elapsed_s())

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write what the model made of some inputs to samples.jsonl and TensorBoard.

        Raises:
            OperationError: the disk does not take them.
        """
        if self._journal:
            self._journal.samples(step, samples)

    def event(self, step: int, name: Literal["started", "ended"], facts: Mapping[str, str]) -> None:
        """Note in metrics.jsonl that training started or ended, with facts (text by label) for the report.

        Raises:
            OperationError: the disk does not take it.
        """
        if self._journal:
            values = {"event": name, "facts": dict(facts), "seconds": round(self._elapsed_s(), 3)}
            self._journal.write(step, values)

    def _beat(self) -> None:
        """Print a line when none was printed for a while, in every phase: a long phase has no steps."""
        while not self._done.wait(max(0.0, self._said_s + _MAX_SILENCE_S - time.monotonic())):
            if time.monotonic() - self._said_s >= _MAX_SILENCE_S:
                self.say(self._line())

    def _line(self) -> str:
        """The bar in words."""
        parts = [self._phase]
        if self._phase != TRAINING_PHASE:
            parts[0] += f", for {dt.timedelta(seconds=int(time.monotonic() - self._phase_s))} so far"
        parts += self._figures_in_order()
        left_s = self._bar.tasks[self._task].time_remaining
        if left_s is not None:
            parts.append(f"{dt.timedelta(seconds=int(left_s))} left")
        return "; ".join(parts)

    def _elapsed_s(self) -> float:
        told_s, at_s = self._clock
        # Before training starts its clock stands still.
        return told_s + (time.monotonic() - at_s if "loss" in self._figures else 0.0)

    def _shown(self) -> str:
        return "  ".join(self._figures_in_order())

    def _figures_in_order(self) -> list[str]:
        return [text for name in ("step", "loss", "validation", "speed") if (text := self._figures.get(name))]
