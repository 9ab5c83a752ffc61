"""Logs: one event a line, JSON or console, foreign loggers included, no local variables in tracebacks."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from google.protobuf.message import DecodeError
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # no stubs
from structlog.testing import capture_logs

from dragoman.server.config import LoggingSettings
from dragoman.server.fronts.grpc.interceptors import _abort
from dragoman.server.fronts.grpc.status import to_status
from dragoman.server.operations.logs import ServerLog, configure_logs, forward_standard_logs
from dragoman.server.requests.failures import Failure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def fail(text: str) -> None:
    secret = f"private {text}"
    raise ValueError(len(secret))


def test_json_is_one_object_a_line() -> None:
    stream = io.StringIO()
    configure_logs(LoggingSettings(format="json"), stream)
    structlog.get_logger().info("serving", port=1)
    structlog.get_logger().debug("request")
    logging.getLogger("grpc").warning("odd %s", "thing")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["port"], first["level"]) == ("serving", 1, "info")
    assert (second["event"], second["level"]) == ("odd thing", "warning")
    assert first["timestamp"].endswith("Z")


def test_the_level_holds() -> None:
    stream = io.StringIO()
    configure_logs(LoggingSettings(level="error"), stream)
    structlog.get_logger().warning("request")
    logging.getLogger("grpc").warning("odd")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_no_local_variables(log_format: str) -> None:
    stream = io.StringIO()
    settings = LoggingSettings.load({"format": log_format}, source="test")
    configure_logs(settings, stream)
    try:
        fail("WORDS OF A USER".lower())
    except ValueError:
        structlog.get_logger().exception("request")
    assert "ValueError: 23" in stream.getvalue()
    assert "in fail" in stream.getvalue()
    assert "words of a user" not in stream.getvalue()


def test_a_storm_is_some_lines_and_a_count() -> None:
    stream = io.StringIO()
    log = ServerLog(configure_logs(LoggingSettings(format="json"), stream))
    for number in range(500):
        structlog.get_logger().warning("request", code="INVALID_ARGUMENT", number=number)
        logging.getLogger("asyncio").error("callback %d failed", number)
    structlog.get_logger().warning("request", code="NOT_FOUND")  # another kind
    structlog.get_logger().info("serving")  # what happens once is no kind
    log.report_losses()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    num_lines = sum(event["event"] != "log_lines_suppressed" for event in events)
    assert num_lines < 60
    counts = {event["kind"]: event["count"] for event in events if event["event"] == "log_lines_suppressed"}
    assert len(counts) == 2
    assert num_lines + sum(counts.values()) == 1002
    assert counts["request INVALID_ARGUMENT"] >= 470


def test_a_call_that_its_client_ended_has_no_traceback_of_grpc() -> None:
    stream = io.StringIO()
    configure_logs(LoggingSettings(), stream)
    logger = logging.getLogger("grpc._cython.cygrpc")
    error = cygrpc.ExecuteBatchError("execute_batch", ())
    logger.error("ExecuteBatchError raised in core by servicer method [x]", exc_info=error)
    assert stream.getvalue() == ""
    try:
        fail("")
    except ValueError:
        logger.exception("Unexpected [ValueError] raised by servicer method [x]")
    assert "ValueError" in stream.getvalue()


def test_what_a_client_sends_that_is_no_text_or_no_message_has_no_traceback() -> None:
    stream = io.StringIO()
    configure_logs(LoggingSettings(), stream)
    logger = logging.getLogger("grpc._cython.cygrpc")
    try:
        b"\xff".decode()
    except UnicodeDecodeError:
        logger.exception("Invalid encoding on %s", b"\xff")
    assert stream.getvalue() == ""
    logger.error("Unexpected [DecodeError] raised by servicer method [x]", exc_info=DecodeError("y"))
    assert stream.getvalue().count("\n") == 1


async def test_a_status_that_cannot_be_sent_is_no_failure() -> None:
    class Ended:
        async def abort_with_status(self, status: object) -> None:
            raise cygrpc.ExecuteBatchError("execute_batch", ())

    await _abort(Ended(), to_status(Failure.internal("an id")))  # type: ignore[arg-type]  # all that is asked of a context


def test_standard_loggers_speak_through_structlog_in_a_process_without_a_log_of_its_own() -> None:
    root = logging.getLogger()
    before = root.handlers
    try:
        forward_standard_logs()
        with capture_logs() as lines:
            logging.getLogger("asyncio").warning("took %d s", 3)
            logging.getLogger("asyncio").info("nothing")
            logging.getLogger("grpc.x").error(
                "gone", exc_info=UnicodeDecodeError("utf-8", b"", 0, 1, "no text")
            )
    finally:
        root.handlers = before
    assert [(line["event"], line["log_level"]) for line in lines] == [("took 3 s", "warning")]
