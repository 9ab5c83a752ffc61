"""Systems take turns at one workload: a sweep finds each one's best setting, then rounds compare them.

Never two at a time, and A B A B in place of A A B B: what a shared machine does meanwhile happens to all.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.serving.systems import Reading, Setting, System, Workload

__all__ = ["Pace", "Ratio", "Standing", "best_setting", "compete", "ratio"]

_SWEEP_INPUTS: Final = 256
_HOPELESS: Final = 1.25  # times the fastest turn
_FEWEST_ROUNDS: Final = 2
_LONG_TURN_S: Final = 3.0  # what it starts with, cold, is lost in it


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long to measure.

    Attributes:
        rounds: turns of each system that count; fewer, but no less than two, when they have taken `max_rounds_s`.
        turn_s: a turn lasts at least so long.
        sweep_turns: turns that each setting gets in a sweep; the fastest one speaks for it.
        settle_s: pause before a turn; OpenMP's threads spin for up to 0.2 s after their last work.
        max_rounds_s: a workload of long turns gets no more rounds after so long: each is an average already.
    """

    rounds: int
    turn_s: float
    sweep_turns: int
    settle_s: float
    max_rounds_s: float = 120.0


@dataclasses.dataclass
class Standing:
    """A system at a workload; no setting means that it cannot do it."""

    system: System
    workload: Workload
    setting: Setting | None
    readings: list[Reading] = dataclasses.field(default_factory=list)  # one a round

    @property
    def median_seconds(self) -> float:
        return statistics.median(reading.seconds for reading in self.readings)

    @property
    def median_tokens_per_second(self) -> float:
        return statistics.median(reading.tokens_per_second for reading in self.readings)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as fast one system is as another: round by round, then over the rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def ratio(ours: Standing, theirs: Standing) -> Ratio:
    """Times per workload of `theirs` over those of `ours`: above 1, ours is faster."""
    rounds = zip(ours.readings, theirs.readings, strict=True)
    values = [their_reading.seconds / our_reading.seconds for our_reading, their_reading in rounds]
    return Ratio(statistics.median(values), min(values), max(values))


def best_setting(system: System, workload: Workload, pace: Pace) -> Setting | None:
    """The setting with the fastest turn, each tried in turn, after one turn that warms up; without turns the first.

    Of much work an evenly spread part is tried, and what is far behind after its first turn gets no other. A turn of
    seconds needs none to warm up, and none beside it.
    """
    settings = system.settings(workload)
    if len(settings) < 2 or not pace.sweep_turns:
        return settings[0] if settings else None
    part = workload.part(_SWEEP_INPUTS)
    fastest = [float("inf")] * len(settings)
    for turn in range(pace.sweep_turns):
        hopeless = min(_HOPELESS * min(fastest), _LONG_TURN_S)
        for index, setting in enumerate(settings):
            if turn > 0 and fastest[index] > hopeless:
                continue
            system.prepare(setting)
            if turn == 0 and (cold_s := system.run(part, 0.0).seconds) > _LONG_TURN_S:
                fastest[index] = cold_s
                continue
            time.sleep(pace.settle_s)
            fastest[index] = min(fastest[index], system.run(part, pace.turn_s).seconds)
    return settings[fastest.index(min(fastest))]


def compete(systems: Sequence[System], workload: Workload, pace: Pace) -> list[Standing]:
    """Sweep, warm up, then `pace.rounds` rounds in which each system that can has one turn."""
    standings = [Standing(system, workload, best_setting(system, workload, pace)) for system in systems]
    able = [one for one in standings if one.setting is not None]
    for one in able:
        assert one.setting is not None
        one.system.prepare(one.setting)
        part = workload.part(_SWEEP_INPUTS)
        if one.system.run(part, 0.0).seconds < _LONG_TURN_S and part is not workload:
            one.system.run(workload, 0.0)
    begin_s = time.perf_counter()
    for num_rounds in range(pace.rounds):
        if num_rounds >= _FEWEST_ROUNDS and time.perf_counter() - begin_s > pace.max_rounds_s:
            break
        for one in able:
            time.sleep(pace.settle_s)
            one.readings.append(one.system.run(workload, pace.turn_s))
    return standings
