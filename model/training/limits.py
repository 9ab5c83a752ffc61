"""The limits that end a training, and how a limit of minutes is shared out over all that has to be done within it."""

import math
import time
from typing import Final, Literal

from dragoman.model.recipe import TrainingSettings

__all__ = ["MAX_EXAMINATION_SHARE", "MAX_QUALITY_SHARE", "MAX_VALIDATION_SHARE", "Limits", "StoppedBy"]

StoppedBy = Literal["max_steps", "max_minutes", "patience"]

# Largest shares of `max_minutes`: for the loss of one validation, for the samples of one validation and their quality,
# and for the measurement of the final weights.
MAX_VALIDATION_SHARE: Final = 0.05
MAX_EXAMINATION_SHARE: Final = 0.05
MAX_QUALITY_SHARE: Final = 0.1
# Of the time that has passed, at most: all validations together. A further one waits.
_MAX_EVALUATIONS_SHARE: Final = 0.25
# Kept for the end at most, so that most of a very short training is training.
_MAX_RESERVED_SHARE: Final = 0.5
_WRITING_S: Final = 2.0  # the run folder and its report


class Limits:
    """Steps and time that training may take. The clock starts when this is made.

    `max_minutes` includes validation, the measurement of the final weights and the report. Their time is reserved:
    first their largest shares, later the time that they really took.
    """

    def __init__(self, settings: TrainingSettings, elapsed_s: float = 0.0) -> None:
        """`elapsed_s` is what earlier sittings took of the time."""
        self._max_steps = settings.max_steps
        self._max_s = math.inf if settings.max_minutes is None else 60.0 * settings.max_minutes
        self._start_s = time.monotonic() - elapsed_s
        self._evaluations_s = 0.0
        self._reserved_s = 0.0
        if self.has_time_limit:
            shares = MAX_VALIDATION_SHARE + MAX_EXAMINATION_SHARE + MAX_QUALITY_SHARE
            self._reserve(self.share(shares))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    @property
    def has_time_limit(self) -> bool:
        """Whether `max_minutes` is set."""
        return self._max_s < math.inf

    @property
    def end_s(self) -> float:
        """The end of `max_minutes`, by `time.monotonic`, less the time to write the run; else infinite."""
        return self._start_s + self._max_s - _WRITING_S

    def share(self, share: float) -> float:
        """Return this share of `max_minutes` in seconds; infinite without `max_minutes`."""
        return share * self._max_s

    def add_evaluation(self, seconds: float, final_s: float) -> None:
        """Count an evaluation of `seconds`. Reserve as many for the last one and `final_s` for what follows."""
        self._evaluations_s += seconds
        if self.has_time_limit:
            self._reserve(seconds + min(final_s, self.share(MAX_QUALITY_SHARE)))

    @property
    def has_room_for_evaluation(self) -> bool:
        """Whether evaluations took no more than their share of the time so far."""
        return not self.has_time_limit or self._evaluations_s <= _MAX_EVALUATIONS_SHARE * self.elapsed_s

    def progress(self, step: int) -> float:
        """Share of the training that is done after `step` steps, at most 1: of the nearer limit.

        As long as `max_steps` is the nearer one this depends on the step alone, and with it the learning
        rate: the same seed then gives the same weights.
        """
        of_steps = 0.0 if self._max_steps is None else step / self._max_steps
        return min(1.0, max(of_steps, self.elapsed_s / (self._max_s - self._reserved_s)))

    def completion(self, step: int) -> float:
        """Share of the whole run that is done after `step` steps, with the final measurement: for the progress bar."""
        of_steps = 0.0 if self._max_steps is None else step / self._max_steps
        return min(1.0, max(of_steps, self.elapsed_s / self._max_s))

    def reached(self, step: int) -> StoppedBy | None:
        """Which limit ends training after `step` steps, if any."""
        if self._max_steps is not None and step >= self._max_steps:
            return "max_steps"
        if self.elapsed_s + self._reserved_s >= self._max_s:
            return "max_minutes"
        return None

    def _reserve(self, seconds: float) -> None:
        self._reserved_s = min(seconds + _WRITING_S, self.share(_MAX_RESERVED_SHARE))
