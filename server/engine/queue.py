"""Sequences that wait, served call by call. Pure bookkeeping: no clock, no I/O, no threads.

Calls take turns by rows (surplus round robin, a deficit round robin that pays afterwards): a turn gives a call one row,
and a call that has a row to its credit may start its next sequence, however many rows that takes from its credit. A new
call goes to the end of the round: it waits for one turn of each other call, however much those have waiting, and no
call waits for ever. Within a call sequences keep their order.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Call", "Queue", "Sequence"]


@dataclass(eq=False, slots=True)
class Call:
    """Whose sequences take turns with those of other calls.

    Attributes:
        waiting: its sequences in the queue, in their order.
        num_waiting_rows: that they need.
        num_running_rows: of those that run.
        credit: turns that it has had, less rows that it has started. With 1 it may start, otherwise it is 0 or less.
    """

    waiting: "deque[Sequence]" = field(default_factory=deque)
    num_waiting_rows: int = 0
    num_running_rows: int = 0
    credit: int = 0


@dataclass(eq=False, slots=True)
class Sequence:
    """One input as the scheduler sees it: its length, its rows, what they cost a step, its deadline, its place.

    While it waits `is_claimed` says that a lane reads it, and then `is_read` that one has.
    """

    num_input_tokens: int
    deadline_s: float | None = None
    num_rows: int = 1
    call: Call = field(default_factory=Call)
    cost: int = 0
    cancelled: bool = False
    waiting: bool = True
    finished: bool = False
    is_claimed: bool = False
    is_read: bool = False
    lane: int = -1  # where it runs
    is_reserved: bool = False  # whether it runs in the lane's reserved rows


class Queue:
    """Waiting sequences, in the order of their calls' turns; iterating tells that order as of now.

    Attributes:
        num_rows: that they need.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self._num_sequences = 0
        self._round: deque[Call] = deque()

    def __len__(self) -> int:
        return self._num_sequences

    def add(self, sequence: Sequence) -> None:
        """Put a sequence behind those of its call."""
        call = sequence.call
        if not call.waiting:
            self._round.append(call)
        call.waiting.append(sequence)
        self._count(sequence, 1)

    def first(self) -> Sequence:
        """Whose turn it is; there must be one."""
        while (call := self._round[0]).credit < 1:
            call.credit += 1
            if call.credit < 1:
                self._round.rotate(-1)
        return call.waiting[0]

    def firsts(self, most: int) -> Iterator[Sequence]:
        """The first of each call, beginning with `first`, for `most` calls. Change nothing while iterating."""
        self.first()
        for call, _ in zip(self._round, range(most), strict=False):
            yield call.waiting[0]

    def take(self, sequence: Sequence) -> None:
        """Take out the first of a call, which pays for it, and end the call's turn if it has nothing left."""
        call = sequence.call
        assert call.waiting[0] is sequence, "a call's sequences keep their order"
        call.credit -= sequence.num_rows
        had_turn = self._round[0] is call
        self.remove(sequence)
        if had_turn and call.waiting:
            self._round.rotate(-1)

    def remove(self, sequence: Sequence) -> None:
        """Take out any of the waiting, for nothing."""
        call = sequence.call
        call.waiting.remove(sequence)
        self._count(sequence, -1)
        if not call.waiting:
            self._round.remove(call)

    def __iter__(self) -> Iterator[Sequence]:
        turns = deque((call, call.credit, 0) for call in self._round)
        while turns:
            call, credit, place = turns.popleft()
            credit += credit < 1
            if credit == 1:
                sequence = call.waiting[place]
                yield sequence
                credit -= sequence.num_rows
                place += 1
            if place < len(call.waiting):
                turns.append((call, credit, place))

    def _count(self, sequence: Sequence, sign: int) -> None:
        self._num_sequences += sign
        self.num_rows += sign * sequence.num_rows
        sequence.call.num_waiting_rows += sign * sequence.num_rows
