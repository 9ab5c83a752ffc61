"""Goodput in overload against the share of a call's time after which it is expected to be answered.

    python -m benchmarks.admission_share

`server/requests/admission.py` takes a call that is expected to be answered within MAX_SHARE of its time. This simulates
a model with slots, on a clock of its own, under loads that differ in lengths, slots, rows a call, deadlines and
bursts. A step computes a token of each row that runs. Calls wait in the order of their arrival, and are dropped where
their deadlines pass. Goodput is the calls answered in time, of those that the model answers with its slots always full.
"""

import argparse
import dataclasses
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from unittest import mock

from benchmarks.report import argument_parser, positive
from rich.console import Console
from rich.table import Table

from dragoman.server.requests import admission
from dragoman.server.requests.admission import Load, Size

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ROW_STEP_SHARE = 1 / 32
"""Time that a row more adds to a step, of the time of a step with none."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A load of a model.

    Attributes:
        step_s: time of a step that has no rows.
        lengths: tokens of an answer, drawn.
        rows: of a call, drawn.
        deadline: of a call, drawn, in mean times of a call that is computed at once in full slots.
        overload: arrivals, of those that can be answered.
        bursts: the share of the time in which all calls arrive.
        stall_s: for which nothing is computed, after the first half of the calls.
    """

    name: str
    num_slots: int
    step_s: float
    lengths: Callable[[random.Random], int]
    rows: Callable[[random.Random], int] = lambda _: 1
    deadline: Callable[[random.Random], float] = lambda _: 4.0
    overload: float = 5.0
    bursts: float = 1.0
    stall_s: float = 0.0


def uniform(low: int, high: int) -> Callable[[random.Random], int]:
    return lambda rng: rng.randint(low, high)


def heavy(median: int, most: int) -> Callable[[random.Random], int]:
    """Log-normal: a few are many times as long as the others."""
    return lambda rng: max(1, min(most, round(rng.lognormvariate(math.log(median), 1.0))))


SCENARIOS = (
    Scenario("short answers, 64 slots", 64, 0.002, uniform(8, 16)),
    Scenario("the same, 1.2 times the peak", 64, 0.002, uniform(8, 16), overload=1.2),
    Scenario(
        "the same, deadlines 2 to 20 times",
        64,
        0.002,
        uniform(8, 16),
        deadline=lambda rng: rng.uniform(2, 20),
    ),
    Scenario(
        "the same, bursts of a fifth of a second each second",
        64,
        0.002,
        uniform(8, 16),
        overload=1.5,
        bursts=0.2,
    ),
    Scenario(
        "the same, 1 to 32 rows a call",
        64,
        0.002,
        uniform(8, 16),
        rows=uniform(1, 32),
        deadline=lambda _: 8.0,
    ),
    Scenario("few slots", 8, 0.005, uniform(8, 16)),
    Scenario("many slots", 512, 0.002, uniform(8, 16), overload=3.0),
    Scenario("long answers", 32, 0.005, uniform(100, 300)),
    Scenario("lengths of a heavy tail", 32, 0.005, heavy(40, 500)),
    Scenario(
        "the same, deadlines 2 to 20 times",
        32,
        0.005,
        heavy(40, 500),
        deadline=lambda rng: rng.uniform(2, 20),
    ),
    Scenario("a slow model, long answers", 16, 0.030, uniform(50, 150), overload=10.0),
    Scenario("the same, a stall of 5 s", 16, 0.030, uniform(50, 150), overload=10.0, stall_s=5.0),
    Scenario("short answers, a stall of 2 s", 64, 0.002, uniform(8, 16), stall_s=2.0),
    Scenario("tight deadlines, twice the time alone", 64, 0.002, uniform(8, 16), deadline=lambda _: 2.0),
)


@dataclasses.dataclass(slots=True)
class Call:
    """One that was taken: tokens that its rows still lack, and when it is over."""

    due_s: float
    size: Size
    waiting: list[int]
    running: int = 0


class Model:
    """Slots that are filled in the order of arrival."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.waiting: deque[Call] = deque()
        self.rows: list[tuple[int, Call]] = []  # the step after which a row is done, and its call
        self.num_steps = 0

    def step(self, now_s: float, on_end: Callable[[Call, float, bool], None]) -> float:
        """Fill the slots and compute a step; returns the time after it."""
        while self.waiting and len(self.rows) < self.scenario.num_slots:
            call = self.waiting[0]
            if call.due_s <= now_s:
                self._drop(self.waiting.popleft(), now_s, on_end)
                continue
            self.rows.append((self.num_steps + call.waiting.pop(), call))
            call.running += 1
            if not call.waiting:
                self.waiting.popleft()
        step_s = self.scenario.step_s * (1 + len(self.rows) * ROW_STEP_SHARE)
        self.num_steps += 1
        now_s += step_s
        rows, self.rows = self.rows, []
        late = set[int]()
        for done, call in rows:
            if call.due_s <= now_s:
                if id(call) not in late:
                    late.add(id(call))
                    if call.waiting:
                        self.waiting.remove(call)
                    self._drop(call, now_s, on_end)
            elif done <= self.num_steps:
                call.running -= 1
                if not call.running and not call.waiting:
                    on_end(call, now_s, True)
            else:
                self.rows.append((done, call))
        return now_s

    @staticmethod
    def _drop(call: Call, now_s: float, on_end: Callable[[Call, float, bool], None]) -> None:
        on_end(call, now_s, False)


def peak(scenario: Scenario, seed: int) -> tuple[float, float]:
    """Calls a second with slots always full, and the mean seconds of a call in such slots."""
    rng = random.Random(seed)
    model, ends, now_s = Model(scenario), 0, 0.0
    num_tokens = num_calls = 0

    def on_end(*_: object) -> None:
        nonlocal ends
        ends += 1

    while model.num_steps < 4_000:
        while len(model.waiting) < scenario.num_slots:
            call = _call(scenario, rng, math.inf)
            num_tokens, num_calls = num_tokens + max(call.waiting), num_calls + 1
            model.waiting.append(call)
        now_s = model.step(now_s, on_end)
    return ends / now_s, num_tokens / num_calls * now_s / model.num_steps


def _call(scenario: Scenario, rng: random.Random, due_s: float) -> Call:
    num_rows = scenario.rows(rng)
    return Call(due_s, Size(num_rows), [scenario.lengths(rng) for _ in range(num_rows)])


def goodput(scenario: Scenario, share: float, seed: int, num_calls: int) -> tuple[float, float]:
    """Calls answered in time, of the peak; and calls that were taken and then late, of those taken."""
    peak_rate, call_s = peak(scenario, seed)
    rng = random.Random(seed)
    model, load = Model(scenario), Load(scenario.num_slots)
    rate = scenario.overload * peak_rate
    num_ends = {True: 0, False: 0}

    def on_end(call: Call, now_s: float, is_answered: bool) -> None:
        load.end(now_s, answered=is_answered, size=call.size)
        num_ends[is_answered] += 1

    now_s = due_s = 0.0
    times = _arrivals(rng, rate, scenario.bursts, num_calls)
    arrivals, stall_s = iter(times), times[num_calls // 2]
    next_s = next(arrivals, None)
    with mock.patch.object(admission, "MAX_SHARE", share):
        while next_s is not None:
            while next_s is not None and next_s <= now_s:
                remaining_s = scenario.deadline(rng) * call_s
                call = _call(scenario, rng, next_s + remaining_s)
                if load.delay(remaining_s - (now_s - next_s), now_s, call.size) is None:
                    load.begin(now_s, call.size)
                    model.waiting.append(call)
                due_s, next_s = next_s, next(arrivals, None)
            if stall_s <= now_s < stall_s + scenario.stall_s:
                now_s += scenario.step_s
            elif model.rows or model.waiting:
                now_s = model.step(now_s, on_end)
            elif next_s is not None:
                now_s = max(now_s, next_s)
    return num_ends[True] / due_s / peak_rate, num_ends[False] / max(1, sum(num_ends.values()))


def _arrivals(rng: random.Random, rate: float, bursts: float, num_calls: int) -> list[float]:
    """Poisson arrivals. With bursts, time passes in the first part of each second alone."""
    times, busy_s = [], 0.0
    for _ in range(num_calls):
        busy_s += rng.expovariate(rate / bursts)
        times.append(busy_s // bursts + busy_s % bursts)
    return times


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--calls", type=positive, default=20_000, help="of each load")
    parser.add_argument("--seed", type=int, default=1)
    options: argparse.Namespace = parser.parse_args(arguments)
    table = Table(title="goodput, % of the peak (late, % of the calls taken)")
    table.add_column("load")
    for share in SHARES:
        table.add_column(f"{share:g}", justify="right")
    for scenario in SCENARIOS:
        cells = [goodput(scenario, share, options.seed, int(options.calls)) for share in SHARES]
        table.add_row(scenario.name, *(f"{100 * good:.0f} ({100 * late:.0f})" for good, late in cells))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
