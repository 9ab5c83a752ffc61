"""Shares of rows by weight, for a few members. Pure bookkeeping.

Start-time fair queueing (Goyal, Vin and Cheng 1996): each member has a time of its own, which passes by the rows that
it starts divided by its weight, and the member whose time would be earliest after one more row is next. What starts
more than one row pays afterwards. Who comes after a pause has no rows saved up, and owes what it owed.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

__all__ = ["Share", "Shares"]


@dataclass(eq=False, slots=True)
class Share:
    """What has a share.

    Attributes:
        cost: of its time that a row takes: the less, the greater its share.
        time: its own, which has passed.
        waits: whether it has anything that waits.
        place: among the members.
    """

    cost: int = 1
    time: int = 0
    waits: bool = False
    place: int = 0


_Share = TypeVar("_Share", bound=Share)
_Item = TypeVar("_Item")


class Shares(Generic[_Share]):
    """Members, some of which have something waiting. Iterating gives those, the next one first."""

    def __init__(self, members: Sequence[_Share], weights: Sequence[int]) -> None:
        """Give each of `members` its weight, a whole number from 1. Of equals, the first goes first."""
        assert min(weights) >= 1, "nobody starves"
        self._members = members
        self._waiting: list[_Share] = []
        for place, (member, weight) in enumerate(zip(members, weights, strict=True)):
            member.place, member.cost = place, math.lcm(*weights) // weight
        self._now = 0

    def __iter__(self) -> Iterator[_Share]:
        return iter(sorted(self._waiting, key=_turn))

    def enter(self, member: _Share) -> None:
        """A member has something waiting, from now on."""
        member.waits = True
        self._waiting.append(member)
        member.time = max(member.time, self._now)

    def leave(self, member: _Share) -> None:
        """A member has nothing waiting any more."""
        member.waits = False
        self._waiting.remove(member)
        if not self._waiting:  # nobody is there to whom anything could be owed
            self._now = 0
            for each in self._members:
                each.time = 0

    def first(self) -> _Share:
        """Return the member that is next; one must be waiting."""
        waiting = self._waiting
        return waiting[0] if len(waiting) == 1 else min(waiting, key=_turn)

    def pay(self, member: _Share, num_rows: int) -> None:
        """Count rows that a member starts; a negative number gives them back."""
        waiting = self._waiting
        self._now = max(self._now, waiting[0].time if len(waiting) == 1 else min(map(_time, waiting)))
        member.time += num_rows * member.cost

    def merged(
        self, of: Callable[[_Share], Iterator[_Item]], num_rows: Callable[[_Item], int]
    ) -> Iterator[_Item]:
        """Yield what waits in the order in which it is next, as of now: `of` gives a member's in their order."""
        heap = [
            (member.time + member.cost, member.place, member.cost, of(member)) for member in self._waiting
        ]
        heapq.heapify(heap)
        while heap:
            time, place, cost, items = heapq.heappop(heap)
            if (item := next(items, None)) is not None:
                yield item
                heapq.heappush(heap, (time + num_rows(item) * cost, place, cost, items))


def _turn(member: Share) -> tuple[int, int]:
    return member.time + member.cost, member.place


_time = attrgetter("time")
