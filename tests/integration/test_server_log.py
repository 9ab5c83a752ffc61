"""A log that cannot be written, or that callers try to fill, costs no call and does not hold up the end."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.integration.child_server import ENVIRONMENT, Process, held_port, ports, running
from tests.integration.raw_http2 import RawClient
from tests.integration.serving import PATIENCE_S, http_get

from dragoman.v1 import decoding_pb2, translation_pb2, translation_pb2_grpc

Request = translation_pb2.TranslateRequest

START_S = 6 * PATIENCE_S
"""On a machine whose cores are busy, a start takes many times as long."""
CLOSE_STANDARD_ERROR = "import os, sys; os.close(2); sys.stderr = None"
SMALL_QUEUE = "import dragoman.server.operations.log_writer as w; w.LogWriter.__init__.__defaults__ = (1000,)"


@contextlib.contextmanager
def silent(program: str, stderr: int, *, level: str = "debug") -> Iterator[tuple[Process, int, int]]:
    """A server that can tell nobody its ports: it is given them. The log has a line for every call."""
    with held_port() as port, held_port() as metrics_port:
        arguments = [*ports()[:-4], "--port", str(port), "--metrics-port", str(metrics_port)]
        with running(*arguments, "--log-level", level, program=program, stderr=stderr) as server:
            wait_until_ready(server, metrics_port)
            yield server, port, metrics_port


def wait_until_ready(server: Process, metrics_port: int) -> None:
    end_s = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError):  # it does not listen yet
            if http_get(metrics_port, "/readyz")[0] == 200:
                return
        assert server.process.poll() is None, "the server has ended"
        assert time.monotonic() < end_s, "the server does not start"
        time.sleep(0.02)


def refuse(channel: grpc.Channel, num_calls: int) -> list[grpc.StatusCode]:
    """Ask for what is refused, so many times at once; returns the codes."""
    stub = translation_pb2_grpc.TranslationServiceStub(channel)
    request = Request(model="spell", inputs=["12"], options=decoding_pb2.DecodingOptions(beam_size=1000))
    calls = [stub.Translate.future(request, timeout=PATIENCE_S) for _ in range(num_calls)]
    return [call.code() for call in calls]


def assert_lives_and_stops(server: Process, port: int, metrics_port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_S)
        for _ in range(10):
            assert set(refuse(channel, 100)) == {grpc.StatusCode.INVALID_ARGUMENT}
        stub = translation_pb2_grpc.TranslationServiceStub(channel)
        for _ in range(100):  # a line each, at this level
            assert stub.Translate(Request(model="spell", inputs=["12"])).translations[0].text == "one two"
    assert http_get(metrics_port, "/readyz") == (200, "serving\n")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0


def test_standard_error_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)  # from now on every line would wait for ever
    with silent(SMALL_QUEUE, writer) as (server, port, metrics_port):
        assert_lives_and_stops(server, port, metrics_port)
    os.close(reader)
    os.close(writer)


def test_standard_error_whose_reader_has_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with silent("", writer) as (server, port, metrics_port):
        os.close(writer)
        assert_lives_and_stops(server, port, metrics_port)


def test_standard_error_on_a_full_disk() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with silent("", full) as (server, port, metrics_port):
        os.close(full)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(PATIENCE_S)
            refuse(channel, 1)
        metrics = http_get(metrics_port, "/metrics")[1]
        [line] = [
            line for line in metrics.splitlines() if line.startswith("dragoman_log_lines_dropped_total")
        ]
        assert float(line.partition(" ")[2]) > 0
        assert_lives_and_stops(server, port, metrics_port)


def test_standard_error_that_is_closed() -> None:
    with silent(CLOSE_STANDARD_ERROR, os.open(os.devnull, os.O_WRONLY)) as (server, port, metrics_port):
        assert_lives_and_stops(server, port, metrics_port)


def test_a_storm_of_refusals_is_some_lines_and_a_count() -> None:
    num_calls = 500
    with running(*ports()) as server:
        port = server.wait_for("serving")["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert set(refuse(channel, num_calls)) == {grpc.StatusCode.INVALID_ARGUMENT}
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 0
    num_lines = sum(event["event"] == "request" for event in server.events)
    num_suppressed = sum(
        event["count"] for event in server.events if event["event"] == "log_lines_suppressed"
    )
    assert num_lines + num_suppressed == num_calls
    assert num_lines < 100


@pytest.mark.parametrize("asked_for", [False, True])
def test_what_a_client_sends_is_no_log_line_unless_asked_for(tmp_path: Path, *, asked_for: bool) -> None:
    assert "GRPC_VERBOSITY" not in ENVIRONMENT
    program = "import os; os.environ['GRPC_VERBOSITY'] = 'INFO'" if asked_for else ""
    path = tmp_path / "log"
    with path.open("wb") as log, silent(program, log.fileno(), level="info") as (server, port, metrics_port):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(PATIENCE_S)
        for _ in range(20):
            with RawClient(port, window=100) as client:
                client.http2.close_connection(error_code=11, additional_data=b"\nFORGED\n")
                client.send()
        assert_lives_and_stops(server, port, metrics_port)
    assert ("FORGED" in path.read_text()) is asked_for
