"""The call that the running task answers. In a process without callers, a bundle without a server, there is none.

Generated code between a front and the services takes no record along, so the record stands in a context variable.
"""

from typing import TYPE_CHECKING

from dragoman.server.priority import Priority
from dragoman.server.requests.record import CURRENT, CallRecord

if TYPE_CHECKING:
    from dragoman.server.operations.spans import CallSpans

__all__ = ["current_client", "current_priority", "current_record", "current_trace", "note_version"]


def current_record() -> CallRecord | None:
    """Returns the call's record; None in a process without callers."""
    return CURRENT.get()


def current_client() -> str:
    """Returns the identity of the call's caller; "" in a process without callers."""
    record = CURRENT.get()
    return "" if record is None else record.caller.identity


def current_priority(requested: Priority) -> Priority:
    """Returns the call's priority: `requested`, or the best that its caller may have."""
    record = CURRENT.get()
    return requested if record is None else max(requested, record.caller.best_priority)


def current_trace() -> "CallSpans | None":
    """Returns the call's spans; None: the call is not traced."""
    record = CURRENT.get()
    return None if record is None else record.trace


def note_version(version: str) -> None:
    """Write into the call's record which version of its model answers it."""
    record = CURRENT.get()
    if record is not None:
        record.version = version
