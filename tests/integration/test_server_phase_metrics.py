"""The metrics say what /readyz says, and what a stop cuts off."""

import asyncio
import time
from pathlib import Path

import pytest
from grpc.aio import AioRpcError
from tests.integration.serving import PATIENCE_S, Gate, Served, one_version, serving

from dragoman.server.lifecycle import CONDITIONS, Lifecycle, Phase
from dragoman.v1 import translation_pb2


def phases(served: Served) -> dict[str, float]:
    return {phase: served.metric("phase", phase=phase) for phase in CONDITIONS}


def only(phase: str) -> dict[str, float]:
    return {each: float(each == phase) for each in CONDITIONS}


async def test_one_phase_is_true_and_a_stop_counts_what_it_cuts_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    async with (
        serving(one_version(tmp_path, "spell/1"), "server.drain_timeout_s=0.1") as served,
        asyncio.timeout(PATIENCE_S),
    ):
        assert phases(served) == only("serving")
        served.server.lifecycle.is_failing = True
        assert phases(served) == only("failing")
        served.server.lifecycle.is_failing = False
        assert served.metric("drain_deadline_timestamp_seconds") == 0.0
        with gate.closed():
            running = served.translation.Translate(
                translation_pb2.TranslateRequest(model="spell", inputs=["12"])
            )
            await gate.wait_for_lane()
            draining = asyncio.create_task(served.server.drain())
            while phases(served) == only("serving"):
                await asyncio.sleep(0)
            assert phases(served) == only("draining")
            await draining
            assert phases(served) == only("stopping")
            with pytest.raises(AioRpcError):
                await running
        assert served.metric("drain_cancelled_calls_total") == 1.0
        assert abs(served.metric("drain_deadline_timestamp_seconds") - time.time()) < PATIENCE_S


def test_every_condition_has_its_series() -> None:
    lifecycle = Lifecycle()
    found = {lifecycle.condition}
    lifecycle.phase, lifecycle.is_failing = Phase.SERVING, True
    found.add(lifecycle.condition)
    lifecycle.is_stuck = True
    found.add(lifecycle.condition)
    assert found | set(Phase) == set(CONDITIONS)
