"""Logs: one event a line, JSON or console, foreign loggers included, no local variables in tracebacks."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from server.config import LoggingSettings
from server.logs import configure_logs


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
