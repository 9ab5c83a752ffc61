"""Structured logs: one event a line on standard error, for people (console) or machines (json).

Texts of users are never logged, so tracebacks are printed without local variables. Warnings and errors of one
kind are written at a bounded rate (`dragoman.server.operations.log_limits`); lines never hold up the server
(`dragoman.server.operations.log_writer`).
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast

import structlog
from google.protobuf.message import DecodeError
from structlog.typing import EventDict, Processor, WrappedLogger

from dragoman.server.config import LoggingSettings
from dragoman.server.operations.log_limits import LogLimiter
from dragoman.server.operations.log_writer import LogStream, LogWriter, descriptor_writer

__all__ = ["ServerLog", "configure_logs", "forward_standard_logs", "queued_logs", "set_level"]

FLUSH_S = 1.0
"""How long the end of the process waits for standard error to take the last lines."""

_log = structlog.get_logger(__name__)


class ServerLog:
    """The log of a server process.

    Attributes:
        writer: Writes the lines; None where they are written by the thread that logs them.
    """

    def __init__(self, limiter: LogLimiter, writer: LogWriter | None = None) -> None:
        self.writer = writer
        self._limiter = limiter
        self._num_reported = 0

    def report_losses(self) -> None:
        """Log how many lines were held back or dropped since the last call, if any were."""
        for suppressed in self._limiter.take_suppressed():
            _log.info("log_lines_suppressed", kind=suppressed.kind, count=suppressed.count)
        if self.writer is not None and self.writer.num_dropped > self._num_reported:
            num_dropped = self.writer.num_dropped - self._num_reported
            self._num_reported += num_dropped
            _log.warning("log_lines_dropped", count=num_dropped)

    def flush(self) -> bool:
        """Wait a bounded time until the lines are written; returns whether they are."""
        return self.writer is None or self.writer.flush(FLUSH_S)


@contextlib.contextmanager
def queued_logs(settings: LoggingSettings) -> Iterator[ServerLog]:
    """Send the log, and whatever else Python code writes to `sys.stderr`, through a bounded queue."""
    stderr = sys.stderr
    writer = LogWriter(descriptor_writer(_descriptor(stderr)))
    stream = LogStream(writer, is_terminal=stderr.isatty())
    limiter = configure_logs(settings, cast("TextIO", stream))
    log = ServerLog(limiter, writer)
    sys.stderr = cast("TextIO", stream)
    try:
        yield log
    finally:
        log.report_losses()
        if log.flush():  # else a line of the command's own would wait for the reader that never comes
            sys.stderr = stderr


def configure_logs(settings: LoggingSettings, stream: TextIO | None = None) -> LogLimiter:
    """Set up structlog, and let the standard library's loggers (grpc, asyncio) speak through it."""
    target = stream or sys.stderr
    level = getattr(logging, settings.level.upper())
    limiter = LogLimiter()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render = _renderers(settings, colours=target.isatty())
    structlog.configure(
        processors=[_limit(limiter), *shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.addFilter(_is_worth_a_line)
    handler.addFilter(lambda record: limiter.admit(f"{record.name}:{record.lineno}"))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))
    return limiter


def set_level(level: str) -> None:
    """Log from `level` on, from now on. Loggers that were bound before keep theirs."""
    number = getattr(logging, level.upper())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))
    logging.getLogger().setLevel(max(number, logging.WARNING))


def forward_standard_logs() -> None:
    """Let warnings of the standard library's loggers (grpc, asyncio) speak through structlog as it is set up."""
    handler = _Forwarding(logging.WARNING)
    handler.addFilter(_is_worth_a_line)
    logging.getLogger().handlers = [handler]


class _Forwarding(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def _limit(limiter: LogLimiter) -> Processor:
    """Drop warnings and errors of a kind that has been written too often: before they cost anything."""

    def limit(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:  # noqa: ARG001
        if method in {"warning", "error"}:
            name, code = event["event"], event.get("code")
            if not limiter.admit(f"{name} {code}" if code else name):
                raise structlog.DropEvent
        return event

    return limit


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether gRPC says more than that a client has gone, or sent what is no text; such a line has no traceback."""
    if not record.name.startswith("grpc."):
        return True
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UnicodeDecodeError) or type(error).__name__ == "ExecuteBatchError":
        return False
    if isinstance(error, DecodeError):  # a message to the health or the reflection service
        record.exc_info = record.exc_text = None
    return True


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # a stream without a file, as tests have them
        return os.open(os.devnull, os.O_WRONLY)


def _renderers(settings: LoggingSettings, *, colours: bool) -> list[Processor]:
    if settings.format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)]
