"""Turns by rows, for members of any kind. Pure bookkeeping.

Surplus round robin, a deficit round robin that pays afterwards: a turn gives a member one row, and a member that has a
row to its credit may start what it has first, however many rows that takes from its credit. A new member goes to the
end of the round. So it waits for one turn of each other, however much those have waiting, and no member waits for ever.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Member", "Turns"]


@dataclass(eq=False, slots=True)
class Member:
    """What takes turns with others.

    Attributes:
        credit: rows that its turns have given it, less rows that it has started. With 1 or more it may start.
        waits: whether it has anything that waits.
    """

    credit: int = 0
    waits: bool = False


_Member = TypeVar("_Member", bound=Member)
_Item = TypeVar("_Item")


class Turns(Generic[_Member]):
    """Members that have something waiting, in the order of their turns. Iterating gives that order as of now."""

    def __init__(self) -> None:
        self._order: OrderedDict[_Member, None] = OrderedDict()
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[_Member]:
        return (member for member in self._order if member.waits)

    def enter(self, member: _Member) -> None:
        """A member has something waiting, from now on: its turn comes last, or where it has kept its place."""
        member.waits = True
        self._num_waiting += 1
        self._order.setdefault(member)

    def put_first(self, member: _Member) -> None:
        """Make the next turn that of a member that waits."""
        self._order.move_to_end(member, last=False)

    def leave(self, member: _Member) -> None:
        """A member has nothing waiting any more."""
        member.waits = False
        self._num_waiting -= 1
        if len(self._order) == 1:
            self._forget(member)
        elif not self._num_waiting:  # nobody is there to whom anything could be owed
            for each in list(self._order):
                self._forget(each)
        elif not self._keeps(member):
            self._forget(member)

    def first(self) -> _Member:
        """Return the member whose turn it is; one must be waiting."""
        while (member := next(iter(self._order))).credit < 1:
            member.credit += 1
            if not member.waits and not self._keeps(member):
                self._forget(member)
            elif member.credit < 1 or not member.waits:
                self._order.move_to_end(member)
        return member

    def pay(self, member: _Member, num_rows: int) -> None:
        """Take rows that a member starts from its credit. Its next turn comes last."""
        member.credit -= num_rows
        self._order.move_to_end(member)

    def merged(
        self, of: Callable[[_Member], Iterator[_Item]], num_rows: Callable[[_Item], int]
    ) -> Iterator[_Item]:
        """Yield what waits as the turns of its members come, as of now: `of` gives a member's in their order."""
        turns = deque((member.credit, of(member)) for member in self)
        while turns:
            credit, items = turns.popleft()
            credit += credit < 1
            if credit >= 1:
                if (item := next(items, None)) is None:
                    continue
                yield item
                credit -= num_rows(item)
            turns.append((credit, items))

    def _keeps(self, _: _Member) -> bool:
        """Whether a member that has nothing waiting keeps its place."""
        return False

    def _forget(self, member: _Member) -> None:
        del self._order[member]
        member.credit = 0
