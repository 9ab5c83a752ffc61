"""Lanes that die again and again turn readiness off, in all fronts and in both probes, while calls are answered."""

import asyncio
import os
import signal
import sys
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.serving import BUNDLES, PATIENCE_S, Served, eventually, serving
from tests.integration.test_server_fronts import TWO, Request
from tests.integration.test_server_processes import pids_of

from dragoman.server import app
from dragoman.server.operations import failure_history
from dragoman.server.operations.failure_history import MIN_READY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="lanes in processes need Linux")

Status = health_pb2.HealthCheckResponse


async def kill_lanes(served: Served, times: int) -> None:
    for _ in range(times):
        before = pids_of(served)
        os.kill(before[0], signal.SIGKILL)
        await eventually(lambda: pids_of(served).get(0) not in {None, before[0]})  # noqa: B023  called at once


async def statuses(served: Served) -> set[int]:
    """Of several connections, which are with different fronts."""

    async def status() -> int:
        address = f"127.0.0.1:{served.server.port}"
        async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int((await stub.Check(health_pb2.HealthCheckRequest())).status)

    return set(await asyncio.gather(*(status() for _ in range(12))))


async def test_deaths_again_and_again_turn_readiness_off_until_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "JUDGING_INTERVAL_S", 0.05)
    async with serving(BUNDLES, *TWO) as served, asyncio.timeout(PATIENCE_S):
        await kill_lanes(served, MIN_READY - 1)
        assert await served.http("/readyz") == (200, "serving\n")
        assert await statuses(served) == {Status.SERVING}
        await kill_lanes(served, 1)
        assert await served.http("/readyz") == (503, "failing\n")
        assert (await served.http("/healthz"))[0] == 200
        while await statuses(served) != {Status.NOT_SERVING}:  # the other front hears of it next
            pass
        answer = await served.translation.Translate(Request(model="spell", inputs=["12"]))
        assert answer.translations[0].text == "one two"
        monkeypatch.setattr(failure_history, "WINDOW_READY_S", 0.0)
        while await statuses(served) != {Status.SERVING}:
            pass
        assert await served.http("/readyz") == (200, "serving\n")
