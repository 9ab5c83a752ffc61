"""Native code that panics, threads that die, memory that runs out: one call ends, or the process does.

A panic of Rust code reaches Python as an exception that is no `Exception`.
"""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.child_server import ports, running
from tests.integration.serving import PATIENCE_S, error_of, eventually, one_version, serving

from dragoman.server.engine.worker import MAX_FAILED_STEPS, LaneWorker
from dragoman.server.execution.rows import Rows
from dragoman.v1 import translation_pb2, translation_pb2_grpc

Request = translation_pb2.TranslateRequest


class PanicException(BaseException):
    """Stands for pyo3's."""


def panic(*arguments: Any, **options: Any) -> None:
    raise PanicException("memory allocation of 123 bytes failed")


@pytest.mark.parametrize("method", ["Translate", "StreamTranslate", "ScoreTranslations"])
async def test_a_panic_in_the_tokenizer_ends_one_call(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(one_version(tmp_path, "spell/1")) as served:
        call = getattr(served.translation, method)
        request: Any = Request(model="spell", inputs=["12"])
        if method == "ScoreTranslations":
            request = translation_pb2.ScoreTranslationsRequest(model="spell")
        with monkeypatch.context() as patched:
            patched.setattr("dragoman.server.requests.runtime.prepare", panic)
            patched.setattr("dragoman.server.requests.runtime.prepare_scoring", panic)
            error = await error_of(call(request))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "123 bytes" not in (error.details() or "")
        await eventually(lambda: served.codes() == {("spell", method, "INTERNAL"): 1.0})
        assert (await served.translation.Translate(Request(model="spell", inputs=["12"]))).translations


async def test_a_panic_in_a_step_ends_the_calls_of_its_lane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(one_version(tmp_path, "spell/1")) as served:
        with monkeypatch.context() as patched:
            patched.setattr(Rows, "decode", panic)
            patched.setattr(Rows, "decode_steps", panic)
            error = await error_of(served.translation.Translate(Request(model="spell", inputs=["12"])))
        assert error.code() is grpc.StatusCode.INTERNAL
        await eventually(lambda: served.codes() == {("spell", "Translate", "INTERNAL"): 1.0})
        assert (await served.translation.Translate(Request(model="spell", inputs=["12"]))).translations


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_whose_lane_died_answers_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(one_version(tmp_path, "spell/1")) as served:
        with monkeypatch.context() as patched:
            patched.setattr(LaneWorker, "_align", panic)
            call = served.translation.Translate(Request(model="spell", inputs=["12"]))
            error = await asyncio.wait_for(error_of(call), PATIENCE_S)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        error = await error_of(served.translation.Translate(Request(model="spell", inputs=["12"])))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


DYING_LANE = """
import threading
from dragoman.server.engine.worker import LaneWorker

align = LaneWorker._align

def fail_on_lanes(worker, now_s):
    if threading.current_thread().name.startswith("lane"):  # not while they are made
        raise MemoryError
    align(worker, now_s)

LaneWorker._align = fail_on_lanes
"""

NO_MEMORY_IN_THE_LOOP = """
from dragoman.server.engine.threads import _Connection

def fail(*arguments):
    raise MemoryError

def deliver(connection, lane, report):
    connection.client.loop.call_soon_threadsafe(fail, lane, report)
    return True

_Connection.deliver = deliver
"""


FAILING_STEPS = """
import threading
from dragoman.server.execution.rows import Rows

def failing_on_lanes(run):
    def fail_on_lanes(*arguments, **named):
        if threading.current_thread().name.startswith("lane"):
            raise RuntimeError("the device is gone")
        return run(*arguments, **named)
    return fail_on_lanes

Rows.decode = failing_on_lanes(Rows.decode)
Rows.decode_steps = failing_on_lanes(Rows.decode_steps)
"""

BROKEN_ACCEPTING = """
from dragoman.server.fronts.grpc.server import _AcceptingServer

async def fail(self):
    raise ValueError("accepting")

_AcceptingServer._request_call = fail
"""


@pytest.mark.parametrize(
    ("program", "reason"),
    [(DYING_LANE, "died of MemoryError"), (NO_MEMORY_IN_THE_LOOP, "MemoryError in the event loop")],
)
def test_a_process_that_cannot_go_on_ends(program: str, reason: str) -> None:
    with running(*ports(), program=program) as server:
        port = server.wait_for("serving")["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            call = stub.Translate.future(Request(model="spell", inputs=["12"]), timeout=PATIENCE_S)
            assert server.wait_for_end() == 1
            assert call.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
    # The line of the call that failed may come after it.
    [leaving] = [event for event in server.events if event["event"] == "exiting_at_once"]
    assert reason in leaving["reason"]


def test_a_process_whose_lane_fails_at_every_step_ends() -> None:
    """It would go on saying that it is ready, and answer every call with INTERNAL."""
    threads = ("--set", "engine.lanes_run_in=threads", "--set", "engine.lanes=1")
    with running(*ports(), *threads, program=FAILING_STEPS) as server:
        port = server.wait_for("serving")["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            codes = []
            for _ in range(MAX_FAILED_STEPS):
                call = stub.Translate.future(Request(model="spell", inputs=["12"]), timeout=PATIENCE_S)
                codes.append(call.code())
            assert server.wait_for_end() == 1
    assert set(codes[:-1]) == {grpc.StatusCode.INTERNAL}
    [leaving] = [event for event in server.events if event["event"] == "exiting_at_once"]
    assert "died of LaneBroken" in leaving["reason"]


def test_a_process_that_accepts_no_more_calls_ends() -> None:
    with running(*ports(), program=BROKEN_ACCEPTING) as server:
        assert server.wait_for_end() == 1
    assert server.events[-1]["reason"] == "gRPC accepts no more calls: ValueError"
