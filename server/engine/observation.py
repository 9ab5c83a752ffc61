"""What a front learns of its lanes: what they computed, what they reused of prompts, how full they are."""

from typing import NamedTuple, Protocol

from dragoman.server.engine.api import PrefixUse

__all__ = ["EngineObserver", "Occupancy", "PrefixTotals"]


class EngineObserver(Protocol):
    """Told of what lanes computed, on the client's event loop."""

    def observe_step(self, graph: str, seconds: float, rows: int) -> None:
        """`graph` is one of those of `GraphRun`."""

    def observe_failed_steps(self, num_steps: int) -> None:
        """Steps raised errors."""


class Occupancy(NamedTuple):
    """How full the lanes are at one moment with what came from here."""

    slots_used: int
    slots_total: int
    num_running: int
    num_waiting: int


class PrefixTotals:
    """What the lanes reused of prompts, as far as they have reported here.

    Attributes:
        num_reused_tokens: prompt tokens whose keys and values were kept.
        num_computed_tokens: prompt tokens that had to be run.
    """

    def __init__(self, *, is_shared: bool) -> None:
        """`is_shared` says that the lanes have one prefix cache together."""
        self.num_reused_tokens = self.num_computed_tokens = 0
        self._is_shared = is_shared
        self._num_bytes: dict[int, int] = {}  # by lane; by 0 where they share

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(list(self._num_bytes.values()))

    def add(self, lane: int, use: PrefixUse) -> None:
        """Count what a lane reported."""
        self.num_reused_tokens += use.num_reused_tokens
        self.num_computed_tokens += use.num_computed_tokens
        self._num_bytes[0 if self._is_shared else lane] = use.num_bytes

    def forget(self, lane: int) -> None:
        """A lane has gone, and its cache with it."""
        if not self._is_shared:
            self._num_bytes.pop(lane, None)
