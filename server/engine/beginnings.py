"""Which lane last had a prompt with the same beginning: where each lane has a prefix cache of its own."""

from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["BEGINNING_TOKENS", "Beginnings"]

BEGINNING_TOKENS = 32
"""Of a prompt. A lane keeps blocks of so many (`server/execution/prefix_cache.py`): a shorter beginning is not kept."""
_MAX_KNOWN = 4096


class Beginnings:
    """The lanes of the beginnings that were seen last. Pure bookkeeping."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[tuple[int, ...], int] = OrderedDict()

    def lane_of(self, input_ids: Sequence[int]) -> int:
        """The lane that had such a prompt last, or -1."""
        return self._lanes.get(tuple(input_ids[:BEGINNING_TOKENS]), -1)

    def note(self, input_ids: Sequence[int], lane: int) -> None:
        """A lane was given a prompt."""
        if len(input_ids) <= BEGINNING_TOKENS:
            return
        beginning = tuple(input_ids[:BEGINNING_TOKENS])
        self._lanes[beginning] = lane
        self._lanes.move_to_end(beginning)
        if len(self._lanes) > _MAX_KNOWN:
            self._lanes.popitem(last=False)
