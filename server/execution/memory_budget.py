"""Is there memory for what the settings ask for? Asked before it is reserved, as the system grants more than it has."""

from collections.abc import Iterator
from contextlib import contextmanager

from dragoman.common.memory import available_memory, readable_bytes
from dragoman.server.errors import ResourceUnavailable
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.cache_memory import row_bytes

__all__ = ["MemoryBudget", "engine_bytes"]

_FLOAT_BYTES = 4


class MemoryBudget:
    """The memory that the engines of one server have reserved; the system backs it with pages as it fills.

    So memory that is available now may be promised already: what was granted before counts.
    """

    def __init__(self, granted_bytes: int = 0) -> None:
        """`granted_bytes` are promised already."""
        self._granted_bytes = granted_bytes

    def give_back(self, num_bytes: int) -> None:
        """Count `num_bytes` that were granted as free again."""
        self._granted_bytes -= num_bytes

    @contextmanager
    def granted(self, num_bytes: int, purpose: str, remedy: str) -> Iterator[None]:
        """Count `num_bytes` for `purpose`, unless the block fails.

        Raises:
            ResourceUnavailable: there is not so much; the message has the numbers and `remedy`.
        """
        available = available_memory()
        if available is not None and self._granted_bytes + num_bytes > available.num_bytes:
            granted = f", {readable_bytes(self._granted_bytes)} of it granted" if self._granted_bytes else ""
            raise ResourceUnavailable(
                f"{purpose} takes {readable_bytes(num_bytes)} of memory; {readable_bytes(available.num_bytes)} are "
                f"available ({available.limit}){granted}: {remedy}"
            )
        self._granted_bytes += num_bytes
        try:
            yield
        except BaseException:
            self._granted_bytes -= num_bytes
            raise


def engine_bytes(backend: Backend, *, num_lanes: int, rows_per_lane: int, prefix_cache_bytes: int) -> int:
    """Bytes that an engine's lanes and its prefix cache reserve in the host's memory."""
    manifest = backend.bundle.manifest
    caches = row_bytes(manifest, backend.cache_dtype) if backend.device is None else 0
    row = caches + manifest.dimensions.vocabulary_size * _FLOAT_BYTES
    return num_lanes * rows_per_lane * row + (prefix_cache_bytes if backend.reuses_prefixes else 0)
