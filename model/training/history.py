"""A run folder's records, read back: series to draw, resumptions, facts, samples."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from dragoman.model.errors import RunError
from dragoman.model.recipe import Recipe
from dragoman.model.run import METRICS_FILE, RECIPE_FILE, RECORD_FILE, SAMPLES_FILE, RunRecord, read_settings
from dragoman.model.training.records import Sample, read_records

__all__ = ["History", "Series", "read_history"]

_SAMPLE = "validation_sample_"
"""The beginning of figures that are measured on a sample of validation, at each validation."""
_EARLIER_SAMPLES = {"validation_bleu", "validation_bits_per_byte"}


@dataclasses.dataclass(frozen=True)
class Series:
    """One figure over the course of a training."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    def at(self, step: int) -> float | None:
        """The value at a step, if it was measured there."""
        return dict(zip(self.steps, self.values, strict=True)).get(step)


@dataclasses.dataclass(frozen=True)
class History:
    """All that a run folder tells of its training.

    Attributes:
        record: run.json; none while training is under way.
        series: by the figure's name.
        seconds: that training took so far.
        resumed_at: steps at which it was taken up again.
        facts: text by label, as training told it at its start and its end.
        samples: by step.
    """

    recipe: Recipe
    record: RunRecord | None
    series: dict[str, Series]
    seconds: float | None
    resumed_at: tuple[int, ...]
    facts: dict[str, str]
    samples: dict[int, list[Sample]]

    def get(self, name: str) -> Series:
        """A figure's series; an empty one if it was never measured."""
        return self.series.get(name, Series())

    @property
    def last_step(self) -> int:
        """The last step there is a figure of, 0 before any."""
        return max((series.steps[-1] for series in self.series.values()), default=0)

    @property
    def best_step(self) -> int | None:
        """The validation of lowest loss: the best checkpoint."""
        losses = self.get("validation_loss")
        pairs = [pair for pair in zip(losses.values, losses.steps, strict=True) if math.isfinite(pair[0])]
        return min(pairs)[1] if pairs else None


def read_history(folder: Path) -> History:
    """Read the records of a run, finished or not.

    Raises:
        RunError: the folder is no run's, or a file in it is damaged.
    """
    if not (folder / RECIPE_FILE).is_file():
        raise RunError(f"{folder} is not a training run: it holds no {RECIPE_FILE}")
    record_path = folder / RECORD_FILE
    records = read_records(folder / METRICS_FILE)
    return History(
        recipe=read_settings(folder / RECIPE_FILE, Recipe),
        record=read_settings(record_path, RunRecord) if record_path.is_file() else None,
        series=_series(records),
        seconds=max((record["seconds"] for record in records if "seconds" in record), default=None),
        resumed_at=tuple(record["step"] for record in records if record.get("event") == "resumed"),
        facts=_facts(records),
        samples={
            record["step"]: [_sample(folder, values) for values in record.get("samples", ())]
            for record in read_records(folder / SAMPLES_FILE)
        },
    )


def _series(records: list[dict[str, Any]]) -> dict[str, Series]:
    points: dict[str, dict[int, float]] = {}
    for record in records:
        if "event" in record:
            continue
        for name, value in record.items():
            if name not in {"step", "seconds"}:
                # The first of a step: the final weights' figures follow those of the last validation.
                points.setdefault(name, {}).setdefault(record["step"], float(value))
    if not any(
        name.startswith(_SAMPLE) for name in points
    ):  # an earlier release called both figures the same
        for name in [name for name in points if name in _EARLIER_SAMPLES]:
            points[f"{_SAMPLE}{name.removeprefix('validation_')}"] = points.pop(name)
    return {name: Series(tuple(of), tuple(of.values())) for name, of in points.items()}


def _facts(records: list[dict[str, Any]]) -> dict[str, str]:
    """What the last start told and, unless training went on after it, the last end."""
    facts: dict[str, str] = {}
    last_step = max((record["step"] for record in records), default=0)
    for record in records:
        event = record.get("event")
        if event == "started" or (event == "ended" and record["step"] == last_step):
            facts |= record["facts"]
    return facts


def _sample(folder: Path, values: dict[str, str]) -> Sample:
    try:
        return Sample(**values)
    except TypeError as error:
        raise RunError(f"{folder / SAMPLES_FILE} holds a sample that is none: {error}") from error
