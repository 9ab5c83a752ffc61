"""Structured logs: one event a line on standard error, for people (console) or machines (json).

Texts of users are never logged, so tracebacks are printed without local variables.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor

from server.config import LoggingSettings

__all__ = ["configure_logs"]


def configure_logs(settings: LoggingSettings, stream: TextIO | None = None) -> None:
    """Set up structlog, and let the standard library's loggers (grpc, asyncio) speak through it."""
    target = stream or sys.stderr
    level = getattr(logging, settings.level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render = _renderers(settings, colours=target.isatty())
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))


def _renderers(settings: LoggingSettings, *, colours: bool) -> list[Processor]:
    if settings.format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)]
