"""Shares of rows by weight, for a few members. Pure bookkeeping.

Start-time fair queueing (Goyal, Vin and Cheng 1996): each member has a time of its own, which passes by the rows that
it starts divided by its weight, and the member whose time would be earliest after one more row is next. What starts
more than one row pays afterwards. Who comes after a pause has no rows saved up, and owes what it owed.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Share", "Shares"]


@dataclass(eq=False, slots=True)
class Share:
    """What has a share.

    Attributes:
        cost: of its time that a row takes: the less, the greater its share.
        time: its own, which has passed.
        waits: whether it has anything that waits.
    """

    cost: int = 1
    time: int = 0
    waits: bool = False


_Share = TypeVar("_Share", bound=Share)
_Item = TypeVar("_Item")


class Shares(Generic[_Share]):
    """Members, some of which have something waiting. Iterating gives those, the next one first."""

    def __init__(self, members: Sequence[_Share], weights: Sequence[int]) -> None:
        """Give each of `members` its weight, a whole number from 1. Of equals, the first goes first."""
        assert min(weights) >= 1, "nobody starves"
        self._members = members
        for member, weight in zip(members, weights, strict=True):
            member.cost = math.lcm(*weights) // weight
        self._now = 0

    def __iter__(self) -> Iterator[_Share]:
        return iter(sorted((member for member in self._members if member.waits), key=_next_time))

    def enter(self, member: _Share) -> None:
        """A member has something waiting, from now on."""
        member.waits = True
        member.time = max(member.time, self._now)

    def leave(self, member: _Share) -> None:
        """A member has nothing waiting any more."""
        member.waits = False
        if not any(each.waits for each in self._members):  # nobody is there to whom anything could be owed
            self._now = 0
            for each in self._members:
                each.time = 0

    def first(self) -> _Share:
        """Return the member that is next; one must be waiting."""
        return min((member for member in self._members if member.waits), key=_next_time)

    def pay(self, member: _Share, num_rows: int) -> None:
        """Count rows that a member starts; a negative number gives them back."""
        self._now = max(self._now, min(each.time for each in self._members if each.waits))
        member.time += num_rows * member.cost

    def merged(
        self, of: Callable[[_Share], Iterator[_Item]], num_rows: Callable[[_Item], int]
    ) -> Iterator[_Item]:
        """Yield what waits in the order in which it is next, as of now: `of` gives a member's in their order."""
        heap = [
            (_next_time(member), place, member.cost, of(member))
            for place, member in enumerate(self._members)
            if member.waits
        ]
        heapq.heapify(heap)
        while heap:
            time, place, cost, items = heapq.heappop(heap)
            if (item := next(items, None)) is not None:
                yield item
                heapq.heappush(heap, (time + num_rows(item) * cost, place, cost, items))


def _next_time(member: Share) -> int:
    return member.time + member.cost
