"""Sequences that wait, served in turns. Pure bookkeeping: no clock, no I/O, no threads.

Priorities have shares of the rows (`server/engine/shares.py`). Within a priority clients take turns by rows, and within
a client calls (`server/engine/turns.py`). So a client that has much waiting, in however many calls, holds up another
one for a turn each, and no call waits for ever. Within a call sequences keep their order.

What starts more rows than it had a right to pays for it later. A client or a priority pays also while it has nothing
waiting, as long as others have.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import ClassVar

from dragoman.server.engine.shares import Share, Shares
from dragoman.server.engine.turns import Member, Turns
from dragoman.server.priority import DEFAULT_WEIGHTS, Priority, Weights

__all__ = ["Call", "Queue", "QueueFullError", "Sequence"]


class QueueFullError(Exception):
    """As many sequences wait as are allowed to."""


@dataclass(eq=False, slots=True)
class Call(Member):
    """The sequences that take turns with those of other calls.

    Attributes:
        client: whose call it is.
        priority: its class.
        waiting: its sequences in the queue, in their order.
        num_waiting_rows: that they need.
        num_given_rows: of those that were given to lanes and are not over.
        among: the calls with which it takes turns, while it is in a queue.
    """

    client: str = ""
    priority: Priority = Priority.NORMAL
    waiting: "deque[Sequence]" = field(default_factory=deque)
    num_waiting_rows: int = 0
    num_given_rows: int = 0
    among: "_Client | None" = None


@dataclass(eq=False, slots=True)
class _Client(Member):
    """The calls of one client that have one priority and wait."""

    key: str = ""
    among: "_Class | None" = None
    calls: Turns[Call] = field(default_factory=Turns)
    num_waiting_rows: int = 0


class _Clients(Turns[_Client]):
    """Clients that have calls waiting, and those that pay what they owe."""

    def __init__(self) -> None:
        super().__init__()
        self.by_key: dict[str, _Client] = {}
        self._spare: _Client | None = None  # one that is not known any more: to make another takes time

    def new(self, key: str, its_class: "_Class") -> _Client:
        """Return a client that nothing is known of yet, which is known from now on."""
        client, self._spare = self._spare or _Client(), None
        client.key, client.among = key, its_class
        self.by_key[key] = client
        return client

    def _keeps(self, client: _Client) -> bool:
        return client.credit < 0

    def _forget(self, member: _Client) -> None:
        super()._forget(member)
        del self.by_key[member.key]
        self._spare = member


@dataclass(eq=False, slots=True)
class _Class(Share):
    """The clients whose calls have one priority."""

    clients: _Clients = field(default_factory=_Clients)


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
        """Whether the rows that this one waits for are not for `other` any more, whose turn is later.

        What overtakes pays, so that turns stay even: nobody may owe more than one sequence may be overtaken by.
        """
        if self.num_rows == 1:  # it has to wait for no other that goes first
            return False
        most = self.MAX_OVERTAKING * self.num_rows
        return self.num_overtaking_rows >= most or _num_owed_rows(other.call, self.call) >= most


class Queue:
    """Waiting sequences in the order of their turns. Iterating gives that order as of now.

    Attributes:
        num_rows: that they need.
        num_tokens: of their inputs.
    """

    def __init__(self, weights: Weights = DEFAULT_WEIGHTS) -> None:
        """Share rows among priorities by `weights`."""
        self.num_rows = self.num_tokens = 0
        self._num_sequences = 0
        self._class_of = {priority: _Class() for priority in Priority}
        self._classes = Shares(list(self._class_of.values()), weights)
        self._deadlines: list[tuple[float, int, Sequence]] = []  # a heap, with some that wait no more
        self._order = itertools.count()

    def __len__(self) -> int:
        return self._num_sequences

    def add(self, sequence: Sequence) -> None:
        """Put a sequence behind those of its call."""
        self._join(sequence.call)
        sequence.call.waiting.append(sequence)
        self._enter(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Put a sequence that was taken before those of its call, whose turn is next and which has its rows back."""
        call = sequence.call
        client, its_class = self._join(call)
        call.waiting.appendleft(sequence)
        call.credit += sequence.num_rows
        client.credit += sequence.num_rows
        client.calls.put_first(call)
        its_class.clients.put_first(client)
        self._classes.pay(its_class, -sequence.num_rows)
        self._enter(sequence)

    def first(self) -> Sequence:
        """Return the sequence whose turn it is; there must be one."""
        return self._classes.first().clients.first().calls.first().waiting[0]

    def firsts(self, most: int) -> Iterator[Sequence]:
        """The first sequence of each of `most` calls, beginning with `first`: those of a priority come together.

        First there is a call of each client, then the second one of each. Change nothing meanwhile.
        """
        self.first()
        return itertools.islice(self._firsts(), most)

    def take(self, sequence: Sequence) -> None:
        """Take out the first of a call, which pays for it."""
        call = sequence.call
        assert call.waiting[0] is sequence, "a call's sequences keep their order"
        client, its_class = _client_and_class(call)
        client.calls.pay(call, sequence.num_rows)
        its_class.clients.pay(client, sequence.num_rows)
        self._classes.pay(its_class, sequence.num_rows)
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take out any of the waiting, for nothing."""
        call = sequence.call
        call.waiting.remove(sequence)
        sequence.waiting = False
        self._count(sequence, -1)
        if call.waiting:
            return
        client, its_class = _client_and_class(call)
        client.calls.leave(call)
        if not client.calls:
            its_class.clients.leave(client)
            if not its_class.clients:
                self._classes.leave(its_class)

    def num_waiting_rows_of(self, call: Call) -> int:
        """Return the rows that wait of the call's client, with the call's priority."""
        client = self._class_of[call.priority].clients.by_key.get(call.client)
        return 0 if client is None else client.num_waiting_rows

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
        return self._classes.merged(_of_class, _num_rows)

    def _firsts(self) -> Iterator[Sequence]:
        for its_class in self._classes:
            clients = deque(iter(client.calls) for client in its_class.clients)
            while clients:
                calls = clients.popleft()
                if (call := next(calls, None)) is not None:
                    yield call.waiting[0]
                    clients.append(calls)

    def _join(self, call: Call) -> tuple[_Client, _Class]:
        """See that a call takes turns; returns the client and the class that it is of."""
        if call.waits:
            return _client_and_class(call)
        its_class = self._class_of[call.priority]
        clients = its_class.clients
        client = clients.by_key.get(call.client)
        if client is None:
            client = clients.new(call.client, its_class)
        if not its_class.waits:
            self._classes.enter(its_class)
        if not client.waits:
            clients.enter(client)
        client.calls.enter(call)
        call.among = client
        return client, its_class

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
        num_rows = sign * sequence.num_rows
        self.num_rows += num_rows
        self.num_tokens += sign * sequence.num_input_tokens
        sequence.call.num_waiting_rows += num_rows
        client, _ = _client_and_class(sequence.call)
        client.num_waiting_rows += num_rows


def _client_and_class(call: Call) -> tuple[_Client, _Class]:
    """Return the client and the class of a call that waits."""
    client = call.among
    assert client is not None
    assert client.among is not None
    return client, client.among


def _num_owed_rows(other: Call, mine: Call) -> int:
    """Return how many rows more `other`, its client or its class has had than it had a right to beside `mine`."""
    if mine.among is other.among:
        return -other.credit
    (client, its_class), (_, my_class) = _client_and_class(other), _client_and_class(mine)
    if its_class is my_class:
        return -client.credit
    return (its_class.time - my_class.time) // its_class.cost


def _of_class(its_class: _Class) -> Iterator[Sequence]:
    return its_class.clients.merged(_of_client, _num_rows)


def _of_client(client: _Client) -> Iterator[Sequence]:
    return client.calls.merged(_of_call, _num_rows)


def _of_call(call: Call) -> Iterator[Sequence]:
    return iter(call.waiting)


_num_rows = attrgetter("num_rows")
