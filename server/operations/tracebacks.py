"""Tracebacks for a log that repeats nothing of a request."""

import traceback
from collections.abc import Iterator

__all__ = ["traceback_without_messages"]

_MAX_CAUSES = 10


def traceback_without_messages(error: BaseException) -> str:
    """Where `error` and its causes were raised, and of which types they are.

    Without their messages: "could not convert string to float: 'TEXT'" repeats what a caller sent.
    """
    parts = []
    for cause in _causes(error):
        frames = "".join(traceback.format_tb(cause.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{type(cause).__qualname__}")
    return "\n\nthen:\n\n".join(reversed(parts))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_MAX_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
