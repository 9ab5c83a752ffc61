"""The end of serving waits for the calls that gRPC's core has not handed over; with a server that is played."""

import asyncio
from typing import Any

import pytest

from dragoman.server.fronts.grpc import draining
from dragoman.server.fronts.grpc.draining import CallGate, GrpcStop
from dragoman.server.requests.in_flight import CallsInFlight

PATIENCE_S = 60.0


class PlayedServer:
    """Remembers how many calls were held back when it was stopped."""

    def __init__(self) -> None:
        self.held_back: list[int] = []
        self.held_back_at_stop: int | None = None

    def count_held_back(self) -> int:
        return self.held_back.pop(0) if len(self.held_back) > 1 else self.held_back[0]

    async def stop(self, grace: float | None) -> None:
        self.held_back_at_stop = self.held_back[0]
        await asyncio.sleep(grace or 0.0)


@pytest.mark.parametrize("is_quiet", [False, True])
async def test_clients_are_sent_away_when_the_core_has_handed_over_all_calls(
    *, is_quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Any = PlayedServer()
    server.held_back = [9, 8, *[8] * (draining.MAX_LOOKS - 1), 7, 7, 9, 3, 1, 0]
    in_flight = CallsInFlight(8)

    async def wait_until_none_begins() -> None:
        if not is_quiet:
            raise TimeoutError

    monkeypatch.setattr(in_flight, "wait_until_none_begins", wait_until_none_begins)
    monkeypatch.setattr(in_flight, "wait_until_none_runs", asyncio.Event().wait)
    stop = GrpcStop(server, in_flight, CallGate(), server.count_held_back)
    draining_task = asyncio.create_task(stop.drain(PATIENCE_S))
    async with asyncio.timeout(PATIENCE_S):
        while server.held_back_at_stop is None:
            await asyncio.sleep(0.001)
    assert server.held_back_at_stop == 0
    draining_task.cancel()
    await stop.end()


async def test_calls_that_the_core_has_dropped_are_not_waited_for() -> None:
    server: Any = PlayedServer()
    server.held_back = [7]
    stop = GrpcStop(server, CallsInFlight(8), CallGate(), server.count_held_back)
    assert await stop.drain(PATIENCE_S) == 0
    assert server.held_back_at_stop == 7
    assert await stop.end()
