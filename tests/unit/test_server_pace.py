"""How long a coroutine goes on before it lets others have their turn."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

import dragoman.server.requests
import dragoman.server.requests.pace
from dragoman.server.requests import runtime
from dragoman.server.requests.pace import Pace


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(dragoman.server.requests.pace, "time", clock)
    return clock


class Ticket:
    """Ends only after a wait."""

    finished_s: float | None = None

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def result(self) -> str:
        if self.finished_s is None:
            await asyncio.sleep(0)
            self._clock.now_s += 1.0
            self.finished_s = self._clock.now_s
        return "answer"


def num_turns(pace: Pace) -> int:
    """How often a step of work that is over ends the turn."""
    waiting = pace().__await__()
    turns = 0
    while next(waiting, "over") != "over":
        turns += 1
    return turns


async def test_long_work_ends_a_turn_and_short_work_does_not(clock: Clock) -> None:
    pace = Pace()
    assert num_turns(pace) == 0
    clock.now_s += 0.01
    assert num_turns(pace) == 1
    assert num_turns(pace) == 0, "a new turn has begun"


async def test_waiting_for_an_answer_is_no_work(clock: Clock) -> None:
    pace = Pace()
    submitted: Any = SimpleNamespace(tickets=[Ticket(clock), Ticket(clock)])
    assert list(map(str, await runtime._all_results(submitted, pace))) == ["answer", "answer"]
    assert num_turns(pace) == 0, "an extra turn for each call takes answers and new calls apart"
    clock.now_s += 0.01
    await runtime._all_results(submitted, pace)
    assert num_turns(pace) == 1, "what was there already is no wait, however long the work before took"
