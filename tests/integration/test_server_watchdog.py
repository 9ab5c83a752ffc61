"""A lane that does not go on: clients repeat its calls, and a process or the whole server is replaced."""

import asyncio
import os
import signal
import sys
from typing import Any

import grpc
import pytest
from tests.integration.child_server import ports, running
from tests.integration.serving import BUNDLES, PATIENCE_S, eventually, http_get, serving
from tests.integration.test_server_processes import codes_of, num_running, pids_of
from tests.integration.test_server_stopping import SLOW_STEPS

from dragoman.server.engine import watchdog
from dragoman.v1 import decoding_pb2, translation_pb2, translation_pb2_grpc

Request = translation_pb2.TranslateRequest
LONG = decoding_pb2.DecodingOptions(min_tokens=80)


AS_SET = """
from dragoman.server import app
from dragoman.server.engine import watchdog
watchdog.RUNS_A_SIGN = 0  # whatever a run took on a machine that does other things too
app.STUCK_S = 3.0  # long enough to ask a server that has little of the machine
"""


@pytest.mark.skipif(sys.platform != "linux", reason="lanes in processes need Linux")
async def test_a_process_that_is_stopped_is_replaced_and_its_calls_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "RUNS_A_SIGN", 0)
    one_lane = ("engine.lanes_run_in=processes", "engine.lanes=1", "engine.slots_per_lane=4")
    async with serving(BUNDLES, *one_lane, "engine.watchdog_s=1") as served, asyncio.timeout(PATIENCE_S):
        lane = pids_of(served)[0]
        calls: list[Any] = [
            served.translation.Translate(Request(model="spell", inputs=["12"] * 4, options=LONG))
            for _ in range(64)  # some seconds of work, which are not over before the lane is stopped
        ]
        await eventually(lambda: num_running(served) > 0)
        os.kill(lane, signal.SIGSTOP)
        codes = await codes_of(calls)
        assert codes.count("UNAVAILABLE") in range(1, 6)  # what it had in its rows
        assert len(codes) - codes.count("UNAVAILABLE") == sum(code.startswith("one two") for code in codes)
        await eventually(lambda: pids_of(served).get(0) not in {None, lane})
        answer = await served.translation.Translate(Request(model="spell", inputs=["12"]))
        assert answer.translations[0].text == "one two"
        assert await served.http("/readyz") == (200, "serving\n")


def test_a_thread_that_is_stuck_ends_the_server_after_its_callers_have_heard() -> None:
    with running(
        *ports(), "--set", "engine.watchdog_s=1", "--set", "engine.lanes=1", program=SLOW_STEPS + AS_SET
    ) as server:
        serving = server.wait_for("serving")
        with grpc.insecure_channel(f"127.0.0.1:{serving['port']}") as channel:
            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            call: Any = stub.Translate.future(
                Request(model="spell", inputs=["12"] * 64, options=LONG), timeout=PATIENCE_S
            )
            assert server.wait_for("lane_stuck")["lane"] == 0
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert "lanes have died" in call.details()
            assert http_get(serving["metrics_port"], "/readyz") == (503, "stuck\n")
        assert server.wait_for_end() == 1
    assert [event["error"] for event in server.events if event["event"] == "broken"] == [
        "lane 0 gives no sign of life, and a thread cannot be ended"
    ]
