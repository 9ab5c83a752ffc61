"""The metadata key by which calls without a version stay with one version of a model."""

from dragoman.server.requests.current_call import current_record

__all__ = ["STICKY_KEY", "sticky_key"]

STICKY_KEY = "dragoman-sticky-key"


def sticky_key() -> str | None:
    """The sticky key of the call that the task answers, or None where it has none."""
    record = current_record()
    for key, value in () if record is None else record.metadata:
        if key == STICKY_KEY:
            return value if isinstance(value, str) else value.decode(errors="backslashreplace")
    return None
