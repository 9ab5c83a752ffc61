"""How the server ends: at every signal, whatever its clients and its own threads do."""

import asyncio
import collections
import json
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import h2.events
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.child_server import Process, ports, running
from tests.integration.raw_http2 import RawClient
from tests.integration.serving import PATIENCE_S, http_get

from dragoman.client.channel import ChannelSettings
from dragoman.server.config import EngineSettings
from dragoman.v1 import (
    decoding_pb2,
    model_pb2,
    model_pb2_grpc,
    translation_pb2,
    translation_pb2_grpc,
)

Request = translation_pb2.TranslateRequest
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING

IGNORE_SIGHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"

ENDLESS_LOADING = """
import structlog, threading
from dragoman.server.bundle.reader import Bundle

def read(folder):
    structlog.get_logger().info("reading")
    threading.Event().wait()

Bundle.read = read
"""

SLOW_STEPS = """
import structlog, threading, time
from dragoman.server.execution.rows import Rows

decode = Rows.decode

def decode_slowly(*arguments, **options):
    if threading.current_thread().name.startswith("lane"):  # golden examples are checked elsewhere
        structlog.get_logger().info("step")
        time.sleep(600)
    return decode(*arguments, **options)

Rows.decode = decode_slowly
"""

NO_THREADS = """
from concurrent.futures import ThreadPoolExecutor

def refuse(self):
    raise RuntimeError("can't start new thread")

ThreadPoolExecutor._adjust_thread_count = refuse
"""

ENDLESS_CHANGES = """
import structlog, time
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.models import threaded

def never_end(*arguments, **options):
    structlog.get_logger().info("changing")
    time.sleep(600)

threaded.load_model = never_end  # of a server that serves; at the start models are loaded elsewhere
LaneThreads.remove_model = never_end
"""

STUCK_LOOP = """
import time
import dragoman.server.serving, structlog
from dragoman.server.app import Server

async def start(self, stop=None):
    structlog.get_logger().info("stuck")
    time.sleep(600)

Server.start = start
dragoman.server.serving.END_S = 0.5
"""


# On a busy machine the usual half second, and a quiet moment of it, may be over before gRPC has handed over all calls
# that it has accepted.
PATIENT_HOLD = f"""
import dragoman.server.fronts.grpc.draining
import dragoman.server.requests.in_flight

dragoman.server.fronts.grpc.draining.MAX_HOLD_S = {PATIENCE_S}
dragoman.server.requests.in_flight.QUIET_S = 0.2
"""

SIGNAL_AFTER_THE_LOOP = """
import asyncio, os, signal, threading, time

close = asyncio.Runner.close

def close_and_wait_for_signal(runner):
    close(runner)
    os.kill(os.getpid(), signal.SIGTERM)
    while not any(thread.name == "watchdog" for thread in threading.enumerate()):
        time.sleep(0.01)

asyncio.Runner.close = close_and_wait_for_signal
"""


def test_a_hang_up_in_a_drain_is_no_second_signal() -> None:
    with running(*ports(), "--set", "server.drain_delay_s=0.3") as server:
        server.wait_for("serving")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        server.process.send_signal(signal.SIGHUP)
        assert server.wait_for_end() == 0
        assert server.events[-1]["event"] == "stopped"


def test_under_nohup_sighup_changes_nothing() -> None:
    with running(*ports(), program=IGNORE_SIGHUP) as server:
        serving = server.wait_for("serving")
        server.process.send_signal(signal.SIGHUP)
        assert http_get(serving["metrics_port"], "/readyz") == (200, "serving\n")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for("stopping")["signal"] == "SIGTERM"
        assert server.wait_for_end() == 0


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_keep_their_defaults(number: signal.Signals) -> None:
    with running(*ports(), program=ENDLESS_LOADING) as server:
        server.wait_for("reading")
        server.process.send_signal(number)
        assert server.wait_for_end() == -number


def test_a_signal_while_a_model_loads_does_not_wait_for_it() -> None:
    with running(*ports(), program=ENDLESS_LOADING) as server:
        server.wait_for("reading")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 0
        assert "stopped" in [event["event"] for event in server.events]


def test_a_signal_after_the_event_loop_has_closed_loses_no_message(tmp_path: Path) -> None:
    with running(*ports(tmp_path), program=SIGNAL_AFTER_THE_LOOP) as server:
        assert server.wait_for_end() == 2
        assert [event["event"] for event in server.events] == ["cannot_serve"]


def test_a_start_without_threads_is_one_line() -> None:
    """As under a limit of memory or of threads: loading cannot begin, and what ends a server cannot either."""
    with running(*ports(), program=NO_THREADS) as server:
        assert server.wait_for_end() == 1
    [broken] = [event for event in server.events if event["level"] == "error"]
    assert broken["error"] == "this process can have no more memory or threads: can't start new thread"
    assert "exception" not in broken


def test_a_second_signal_ends_a_server_whose_event_loop_is_stuck() -> None:
    with running(*ports(), program=STUCK_LOOP) as server:
        server.wait_for("stuck")
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)  # another one: two equal ones at once are one
        assert server.wait_for_end() in {128 + signal.SIGINT, 128 + signal.SIGTERM}
        assert server.events[-1]["event"] == "exiting_at_once"


def test_one_signal_ends_it_too_when_its_time_is_over() -> None:
    with running(*ports(), "--set", "server.drain_timeout_s=0.1", program=STUCK_LOOP) as server:
        server.wait_for("stuck")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 1
        assert server.events[-1]["reason"] == "the server did not stop within 0.6 s of SIGTERM"


async def keep_calling(port: int, signalled: Process, num_callers: int, *, retries: bool) -> dict[str, int]:
    """Call without a pause until the server has gone; SIGTERM comes after a while. Returns counts by code."""
    codes: collections.Counter[str] = collections.Counter()
    options: Any = ChannelSettings().arguments("") if retries else [("grpc.enable_retries", 0)]

    async def call_on(stub: Any) -> None:
        while signalled.process.poll() is None:
            try:
                await stub.Translate(Request(model="spell", inputs=["12"]), timeout=PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1
                if "failed to connect" in (error.details() or "") or "backends" in (error.details() or ""):
                    return  # it listens no more
            else:
                codes["OK"] += 1
                if codes["OK"] == 10 * num_callers:
                    signalled.process.send_signal(signal.SIGTERM)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        stub = translation_pb2_grpc.TranslationServiceStub(channel)
        await asyncio.gather(*(call_on(stub) for _ in range(num_callers)))
    return codes


@pytest.mark.parametrize("retries", [False, True])
def test_a_signal_under_load_loses_no_call(*, retries: bool) -> None:
    """Callers without a pause: some call is always on its way into the server."""
    lanes = ("--set", f"engine.lanes_run_in={EngineSettings().lanes_run_in}")
    with running(*ports(), *lanes, program=PATIENT_HOLD) as server:
        port = server.wait_for("serving")["port"]
        codes = asyncio.run(keep_calling(port, server, 64, retries=retries))
        assert server.wait_for_end() == 0
    # UNAVAILABLE: a call that found nobody who listens, and so was never begun.
    assert set(codes) <= {"OK", "UNAVAILABLE"}
    assert codes["OK"] >= 10 * 64


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_that_never_takes_its_health_does_not_hold_up_the_end(*, reads: bool) -> None:
    """Its flow-control window is 0, so what it watches can never be sent to it."""
    with running(*ports(), "--set", "server.drain_timeout_s=100") as server:
        port = server.wait_for("serving")["port"]
        with RawClient(port, window=0) as stuck, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            message = health_pb2.HealthCheckRequest().SerializeToString()
            stream = stuck.call("/grpc.health.v1.Health/Watch", message)
            stuck.read_until(h2.events.ResponseReceived, stream)  # headers are not under flow control
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == SERVING
            server.process.send_signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING  # the other watcher hears at once
            if reads:
                stuck.read_to_end()
            assert server.wait_for_end() == 0, (
                "no call was running, so it does not last as long as a drain may"
            )
        assert server.events[-1]["event"] == "stopped"


@pytest.mark.parametrize("program", ["", SLOW_STEPS])
def test_calls_that_outlive_the_drain_are_cut_off_without_a_crash(program: str) -> None:
    """Also where a thread is still in the middle of a step."""
    with running(*ports(), "--set", "server.drain_timeout_s=0.2", program=program) as server:
        port = server.wait_for("serving")["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            options = decoding_pb2.DecodingOptions(min_tokens=80)
            calls = [
                stub.Translate.future(Request(model="spell", inputs=["12"] * 128, options=options))
                for _ in range(8)
            ]
            if program:
                server.wait_for("step")
            else:
                wait_until_rows_run(server)
            server.process.send_signal(signal.SIGTERM)
            codes = {call.code() for call in calls}
            assert server.wait_for_end() == 0, json.dumps(server.events)
    events = [event["event"] for event in server.events]
    assert "drain_timeout" in events
    assert "stopped" in events
    # Some may have ended in time.
    assert codes - {grpc.StatusCode.OK} <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    assert codes != {grpc.StatusCode.OK}


def wait_until_rows_run(server: Process) -> None:
    [serving] = [event for event in server.events if event["event"] == "serving"]
    while 'dragoman_requests_running{model="spell"} 0.0' in http_get(serving["metrics_port"], "/metrics")[1]:
        pass


def change(server: Process, port: int, method: str) -> None:
    """Begin to load or unload a version, which never ends; returns when it has begun."""
    request = {
        "LoadModel": model_pb2.LoadModelRequest(model="count", version="1"),
        "UnloadModel": model_pb2.UnloadModelRequest(model="spell", version="2"),
    }[method]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = getattr(model_pb2_grpc.ModelServiceStub(channel), method).future(request)
        server.wait_for("changing")
        call.cancel()


@pytest.mark.parametrize("method", ["LoadModel", "UnloadModel"])
def test_a_change_that_a_thread_makes_is_not_waited_for(method: str) -> None:
    arguments = ("--set", "models.allow_changes=true", "--set", "server.drain_timeout_s=5")
    with running(*ports(), *arguments, program=ENDLESS_CHANGES) as server:
        change(server, server.wait_for("serving")["port"], method)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 0
    assert "draining" in [each["event"] for each in server.events]


def test_a_second_signal_ends_a_server_whose_call_waits_for_a_change() -> None:
    arguments = ("--set", "models.allow_changes=true", "--set", "server.drain_timeout_s=600")
    with (
        running(*ports(), *arguments, program=ENDLESS_CHANGES) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.wait_for('serving')['port']}") as channel,
    ):
        loading = model_pb2_grpc.ModelServiceStub(channel).LoadModel.future(
            model_pb2.LoadModelRequest(model="count", version="1")
        )
        server.wait_for("changing")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        assert not loading.done()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 128 + signal.SIGTERM
