"""How far training is: the limits that end it, and what it tells the person and the run folder."""

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

from model.recipe import TrainingSettings
from model.training.journal import Journal
from model.training.records import Sample

__all__ = ["Limits", "Reporter", "StoppedBy"]

StoppedBy = Literal["max_steps", "max_minutes", "patience"]

_SPEED_PERIOD_S = 600.0  # time left is estimated from so much of the past: steps, validations and all
_VALIDATION_FIGURES = {  # the first one that is measured is shown beside the bar
    "validation_bleu": "BLEU {:.2f}",
    "validation_bits_per_byte": "{:.3f} bits a byte",
    "validation_loss": "validation {:.4f}",
}


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
        self._task = self._bar.add_task("", total=1.0, figures="")

    def __enter__(self) -> Self:
        if self._journal:
            self._journal.__enter__()
            self._clock = self._journal.elapsed_s, time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._journal:
            self._journal.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._journal:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """What is going on now, beside the bar."""
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

    def _elapsed_s(self) -> float:
        told_s, at_s = self._clock
        # Before training starts its clock stands still.
        return told_s + (time.monotonic() - at_s if "loss" in self._figures else 0.0)

    def _shown(self) -> str:
        order = ("step", "loss", "validation", "speed")
        return "  ".join(text for name in order if (text := self._figures.get(name)))
