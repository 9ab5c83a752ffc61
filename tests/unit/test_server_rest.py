"""Memory that a flood of calls took goes back once none runs."""

import asyncio

import pytest

from dragoman.server.requests import in_flight
from dragoman.server.requests.in_flight import CallsInFlight

REST_S = 0.02
PATIENCE_S = 20.0


class Acts:
    """What is done at rest, counted."""

    def __init__(self) -> None:
        self.number = 0
        self._done = asyncio.Event()

    async def __call__(self) -> None:
        self.number += 1
        self._done.set()

    async def wait(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._done.wait()
        self._done.clear()


async def test_memory_goes_back_after_calls_and_while_none_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "REST_S", REST_S)
    calls, acts = CallsInFlight(8), Acts()
    resting = asyncio.create_task(calls.at_rest(acts, interval_s=0.0))
    await asyncio.sleep(10 * REST_S)
    assert acts.number == 0, "no call has run"
    calls.begin()
    calls.begin()
    calls.end()
    await asyncio.sleep(10 * REST_S)
    assert acts.number == 0, "a call runs"
    calls.end()
    await acts.wait()
    await asyncio.sleep(10 * REST_S)
    assert acts.number == 1, "no call has run since"
    calls.begin()
    calls.end()
    await acts.wait()
    assert acts.number == 2
    resting.cancel()


async def test_a_rare_caller_does_not_have_memory_given_back_after_each_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_flight, "REST_S", REST_S)
    calls, acts = CallsInFlight(8), Acts()
    resting = asyncio.create_task(calls.at_rest(acts, interval_s=1000.0))
    for _ in range(5):
        calls.begin()
        calls.end()
        await asyncio.sleep(3 * REST_S)
    assert acts.number == 1
    resting.cancel()
