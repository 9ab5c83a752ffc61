"""How often one kind of log line may be written: token buckets, and what they held back.

Under a storm of refused calls the log says what happens, how often, and does not grow with the storm.
"""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

__all__ = ["LogLimiter", "Suppressed"]

BURST = 20
LINES_PER_SECOND = 1.0
MAX_KINDS = 256
"""Kinds come from the program's text, not from callers, so there are far fewer."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_s: float
    num_suppressed: int = 0


@dataclass(frozen=True, slots=True)
class Suppressed:
    """Lines of one kind that were not written."""

    kind: Hashable
    count: int


class LogLimiter:
    """Admits of each kind `BURST` lines at once and `LINES_PER_SECOND` in the long run. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[Hashable, _Bucket] = {}
        self._lock = threading.Lock()

    def admit(self, kind: Hashable) -> bool:
        """Whether a line of this kind may be written now."""
        with self._lock:
            now_s = self._clock()
            bucket = self._buckets.get(kind)
            if bucket is None:
                if len(self._buckets) >= MAX_KINDS:
                    return False
                bucket = self._buckets[kind] = _Bucket(BURST, now_s)
            bucket.tokens = min(BURST, bucket.tokens + (now_s - bucket.filled_s) * LINES_PER_SECOND)
            bucket.filled_s = now_s
            if bucket.tokens < 1:
                bucket.num_suppressed += 1
                return False
            bucket.tokens -= 1
            return True

    def take_suppressed(self) -> list[Suppressed]:
        """Returns the lines that were held back since the last call, by kind."""
        with self._lock:
            suppressed = [
                Suppressed(kind, bucket.num_suppressed)
                for kind, bucket in self._buckets.items()
                if bucket.num_suppressed
            ]
            for bucket in self._buckets.values():
                bucket.num_suppressed = 0
        return suppressed
