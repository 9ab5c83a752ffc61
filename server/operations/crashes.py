"""The end of a process that cannot go on: a thread of it has died, or its event loop is short of memory.

Callers would wait for ever for what the thread or the callback did.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import structlog

__all__ = ["Leave", "leaving_on_dead_threads", "loop_error_handler"]

Leave = Callable[[str], object]
"""Ends the process at once, for the reason that it is given."""

_log = structlog.get_logger(__name__)


@contextlib.contextmanager
def leaving_on_dead_threads(leave: Leave) -> Iterator[None]:
    """Log it and `leave` when a thread dies of an exception."""
    before = threading.excepthook

    def end(dead: threading.ExceptHookArgs) -> None:
        name = dead.thread.name if dead.thread else "?"
        try:
            _log.error("thread_died", thread=name, exc_info=dead.exc_value)
        finally:
            leave(f"the thread {name} died of {dead.exc_type.__name__}")

    threading.excepthook = end
    try:
        yield
    finally:
        threading.excepthook = before


def loop_error_handler(leave: Leave) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return an exception handler for an event loop. It logs what a callback raised.

    Short of memory, the loop would go on without what the callback was for: the handler calls `leave`.
    """

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        loop.default_exception_handler(context)
        error = context.get("exception")
        if "handle" in context and (isinstance(error, MemoryError) or not isinstance(error, Exception)):
            leave(f"{type(error).__name__} in the event loop")

    return handle
