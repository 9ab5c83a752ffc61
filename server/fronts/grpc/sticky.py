"""The metadata key by which calls without a version stay with one version of a model."""

from typing import Any, Protocol

__all__ = ["STICKY_KEY", "sticky_key"]

STICKY_KEY = "dragoman-sticky-key"


class _Context(Protocol):
    def invocation_metadata(self) -> Any:
        """Pairs of a key and a value; the stubs of grpc.aio have a mapping."""


def sticky_key(context: _Context) -> str | None:
    """The call's sticky key, or None where it has none."""
    for key, value in context.invocation_metadata() or ():
        if key == STICKY_KEY:
            return value if isinstance(value, str) else value.decode(errors="backslashreplace")
    return None
