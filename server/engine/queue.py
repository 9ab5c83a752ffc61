"""Sequences that wait, served call by call. Pure bookkeeping: no clock, no I/O, no threads.

Calls take turns by rows (surplus round robin, a deficit round robin that pays afterwards): a turn gives a call one row,
and a call that has a row to its credit may start its next sequence, however many rows that takes from its credit. A new
call goes to the end of the round: it waits for one turn of each other call, however much those have waiting, and no
call waits for ever. Within a call sequences keep their order.
"""

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

__all__ = ["Call", "Queue", "QueueFullError", "Sequence"]


class QueueFullError(Exception):
    """As many sequences wait as are allowed to."""


@dataclass(eq=False, slots=True)
class Call:
    """The sequences that take turns with those of other calls.

    Attributes:
        waiting: its sequences in the queue, in their order.
        num_waiting_rows: that they need.
        num_given_rows: of those that were given to lanes and are not over.
        credit: turns that it has had, less rows that it has started. With 1 or more it may start.
    """

    waiting: "deque[Sequence]" = field(default_factory=deque)
    num_waiting_rows: int = 0
    num_given_rows: int = 0
    credit: int = 0


@dataclass(eq=False, slots=True)
class Sequence:
    """One input as a dispatcher or a scheduler sees it: its length, its rows, what they cost a step, its place.

    Attributes:
        num_input_tokens: its length.
        deadline_s: the moment when it is dropped, or None.
        num_rows: of one lane, that it needs all at once.
        call: the call that it is of.
        cost: microseconds a step of its rows (`decoding/cost.py`).
        waiting: whether it is in the queue.
        lane: that it was given to.
        is_small: whether its call had few rows when it was given to a lane, so that reserved ones may be used.
        is_reserved: whether it has reserved rows of its lane.
        num_overtaking_rows: of others that went first since it waits for many rows.
        num_lost_lanes: lanes that died before it started there.
        preferred_lane: where it goes if that has little more to do than others: the lane has computed a part of it.
        is_encoded: whether its lane has encoded it while it waits.
    """

    MAX_OVERTAKING: ClassVar[int] = 2
    """Rows that may go first for each row that a sequence waits for."""

    num_input_tokens: int
    deadline_s: float | None = None
    num_rows: int = 1
    call: Call = field(default_factory=Call)
    cost: int = 0
    cancelled: bool = False
    waiting: bool = True
    finished: bool = False
    is_encoded: bool = False
    lane: int = -1
    is_small: bool = False
    is_reserved: bool = False
    num_overtaking_rows: int = 0
    num_lost_lanes: int = 0
    preferred_lane: int = -1

    def is_overtaken_enough_by(self, other: "Sequence") -> bool:
        """Whether the rows that this one waits for are not for `other` any more, whose call's turn is later.

        What overtakes pays, so that turns stay even: a call may not owe more than one sequence may be overtaken by.
        """
        if self.num_rows == 1:  # it has to wait for no other that goes first
            return False
        most = self.MAX_OVERTAKING * self.num_rows
        return self.num_overtaking_rows >= most or other.call.credit <= -most


class Queue:
    """Waiting sequences in the order of their calls' turns. Iterating gives that order as of now.

    Attributes:
        num_rows: that they need.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self._num_sequences = 0
        self._round: OrderedDict[Call, None] = OrderedDict()  # calls that have sequences waiting
        self._deadlines: list[tuple[float, int, Sequence]] = []  # a heap, with some that wait no more
        self._order = itertools.count()

    def __len__(self) -> int:
        return self._num_sequences

    def add(self, sequence: Sequence) -> None:
        """Put a sequence behind those of its call."""
        call = sequence.call
        if not call.waiting:
            self._round[call] = None
        call.waiting.append(sequence)
        self._enter(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Put a sequence that was taken before those of its call, whose turn is next and which has its rows back."""
        call = sequence.call
        call.waiting.appendleft(sequence)
        call.credit += sequence.num_rows
        self._round[call] = None
        self._round.move_to_end(call, last=False)
        self._enter(sequence)

    def first(self) -> Sequence:
        """Return the sequence whose turn it is; there must be one."""
        while (call := next(iter(self._round))).credit < 1:
            call.credit += 1
            if call.credit < 1:
                self._round.move_to_end(call)
        return call.waiting[0]

    def firsts(self, most: int) -> Iterator[Sequence]:
        """The first sequence of each call, beginning with `first`, for `most` calls. Change nothing meanwhile."""
        self.first()
        for call in itertools.islice(self._round, most):
            yield call.waiting[0]

    def take(self, sequence: Sequence) -> None:
        """Take out the first of a call, which pays for it, and end the call's turn if it has nothing left."""
        call = sequence.call
        assert call.waiting[0] is sequence, "a call's sequences keep their order"
        call.credit -= sequence.num_rows
        had_turn = next(iter(self._round)) is call
        self.remove(sequence)
        if had_turn and call.waiting:
            self._round.move_to_end(call)

    def remove(self, sequence: Sequence) -> None:
        """Take out any of the waiting, for nothing."""
        call = sequence.call
        call.waiting.remove(sequence)
        sequence.waiting = False
        self._count(sequence, -1)
        if not call.waiting:
            del self._round[call]

    def take_expired(self, now_s: float) -> list[Sequence]:
        """Take out the sequences whose deadline has passed, and return them."""
        expired = []
        while self._deadlines and (self._deadlines[0][0] <= now_s or not self._deadlines[0][2].waiting):
            sequence = heapq.heappop(self._deadlines)[2]
            if sequence.waiting:
                self.remove(sequence)
                expired.append(sequence)
        return expired

    def __iter__(self) -> Iterator[Sequence]:
        turns = deque((call, call.credit, 0) for call in self._round)
        while turns:
            call, credit, place = turns.popleft()
            credit += credit < 1
            if credit >= 1:
                sequence = call.waiting[place]
                yield sequence
                credit -= sequence.num_rows
                place += 1
            if place < len(call.waiting):
                turns.append((call, credit, place))

    def _enter(self, sequence: Sequence) -> None:
        sequence.waiting = True
        self._count(sequence, 1)
        if sequence.deadline_s is not None:
            self._forget_stale_deadlines()
            heapq.heappush(self._deadlines, (sequence.deadline_s, next(self._order), sequence))

    def _forget_stale_deadlines(self) -> None:
        """Keep the heap in proportion to the queue: far deadlines of answered sequences would pile up in it."""
        if len(self._deadlines) > 2 * self._num_sequences + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
            heapq.heapify(self._deadlines)

    def _count(self, sequence: Sequence, sign: int) -> None:
        self._num_sequences += sign
        self.num_rows += sign * sequence.num_rows
        sequence.call.num_waiting_rows += sign * sequence.num_rows
