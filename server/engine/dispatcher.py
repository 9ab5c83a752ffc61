"""Which waiting sequence goes to which lane, and when. Pure bookkeeping: no clock, no I/O, no threads.

A front keeps its waiting sequences here as long as it can, and they take turns (`server/engine/queue.py`, ADR 18). A
lane is given what it can start, and a few more (`lookahead_rows`), so that the row of a sequence that ends is taken
again in the lane's next plan, before the front hears of the end. Everything else waits for the lane that has room first
(late binding, as the central queue of Shinjuku, Kaffes et al. 2019, or of any M/G/k system).

A few sequences run on one lane while the others rest: a step of four rows costs little more than one of a single row
(ADR 14). What is beyond those, and long inputs, spread over the lanes at once.

However much one call has, another need not wait for its end: some rows of each lane and a part of the queue are for
calls that have little there, a part of the queue for clients that have little there. A sequence that needs many rows at
once is overtaken by others for a while, and then gets a lane that others leave to it.
"""

import itertools
import sys
from operator import attrgetter

from dragoman.server.engine.known_lane import KnownLane, LaneUse, is_long
from dragoman.server.engine.lane_room import LaneRoom
from dragoman.server.engine.queue import Call, Queue, QueueFullError, Sequence
from dragoman.server.priority import DEFAULT_WEIGHTS, Priority, Weights

__all__ = ["Call", "Dispatcher", "QueueFullError", "Sequence"]

_ROWS_BEFORE_SPREAD = 8
"""On one lane they cost half of the CPU time that they would cost on two (ADR 14)."""
_SLOTS_A_LOOKAHEAD_ROW = 2
"""So a row that ends is taken again at once, also where reports are 10 ms late or searches have many rows (ADR 22)."""
_MAX_LOOKED_AT = 64
"""Calls among which one is looked for that may go while the first may not."""
_MAX_LOST_LANES = 2
"""A sequence that so many lanes died with before it started is not given to another: it may be what they die of."""
_MAX_PREFERRED_ROWS = 4
"""That a preferred lane may have more than the one that would be chosen: a step of so many takes little longer."""
_MORE_QUARTERS = {Priority.HIGH: 1, Priority.NORMAL: 0, Priority.LOW: -1}
"""Of the queue's bounds, that calls of a priority may fill or have to leave."""
_num_free = attrgetter("num_free")
_num_free_reserved = attrgetter("num_free_reserved")


class Dispatcher:
    """Waiting sequences of a front, and the room that its lanes have for them.

    Call `dispatch` after each change of what waits or of the room that there is.

    Args:
        num_lanes: lanes there are, numbered from 0; `add_lane` adds others.
        slots_per_lane: rows of each lane for any call.
        max_waiting: rows that may be waited for; a call that needs one more is refused, with three exceptions. A
            quarter more may be waited for by calls that need no more than a sixteenth, an eighth more if their
            client needs no more than that, and a quarter more by calls of high priority. Calls of low priority have to
            leave a quarter.
        max_waiting_tokens: of inputs that may wait here while anything waits, with the same exceptions for priorities;
            0: any number.
        weights: rows of a priority's turn.
        reserved_rows: rows that each lane has beside its `slots_per_lane`. While those are taken, a call that has no
            more than `reserved_rows` on all lanes may start there.
        rows_before_spread: rows up to which a lane that runs is filled before an idle one starts. 1: all lanes
            start as soon as there is work.
        max_step_cost: of sequences that run together on a lane, so that its steps stay short. One sequence is always
            allowed, whatever it costs; the reserved rows may cost a quarter more.
        lookahead_rows: rows that may be waited for on each lane; None: half as many as it has slots.
    """

    def __init__(
        self,
        num_lanes: int,
        slots_per_lane: int,
        max_waiting: int,
        *,
        reserved_rows: int = 0,
        rows_before_spread: int = _ROWS_BEFORE_SPREAD,
        max_step_cost: int = sys.maxsize,
        lookahead_rows: int | None = None,
        max_waiting_tokens: int = 0,
        weights: Weights = DEFAULT_WEIGHTS,
    ) -> None:
        self.slots_per_lane = slots_per_lane
        self.max_waiting = max_waiting
        self.max_waiting_tokens = max_waiting_tokens
        self.reserved_rows = reserved_rows
        self.rows_before_spread = rows_before_spread
        self.max_step_cost = max_step_cost
        if lookahead_rows is None:
            lookahead_rows = max(1, slots_per_lane // _SLOTS_A_LOOKAHEAD_ROW)
        self.lookahead_rows = lookahead_rows
        self._queue = Queue(weights)
        self._num_shared_used = 0
        self._small: dict[Call, None] = {}  # calls whose first waiting sequence may use reserved rows
        self._lanes: dict[int, KnownLane] = {}
        self._retiring: dict[int, KnownLane] = {}
        for index in range(num_lanes):
            self.add_lane(index)

    @property
    def num_slots(self) -> int:
        """Rows of all lanes, the reserved ones included."""
        return (self.slots_per_lane + self.reserved_rows) * len(self._lanes)

    @property
    def num_queued_rows(self) -> int:
        """Rows that the sequences need that wait here."""
        return self._queue.num_rows

    @property
    def num_waiting(self) -> int:
        """Sequences that have not started: those in the queue and those that wait on a lane."""
        return len(self._queue) + sum(len(lane.sent) for lane in self._known())

    @property
    def num_running(self) -> int:
        """Sequences that have started and not ended."""
        return sum(len(lane.started) for lane in self._known())

    @property
    def num_used_slots(self) -> int:
        """Rows of the sequences that have started and not ended."""
        return sum(lane.num_started_rows for lane in self._known())

    def submit(self, *sequences: Sequence) -> None:
        """Queue sequences of one call, each of at most `slots_per_lane` rows: all of them or none.

        Raises:
            QueueFullError: more rows or tokens would wait than may. Not counted are rows that are free for them;
                while nothing waits, those of all lanes, and all tokens.
        """
        assert all(1 <= each.num_rows <= self.slots_per_lane for each in sequences), "it could never start"
        if not sequences:
            return
        call, num_tokens = sequences[0].call, 0
        if self.max_waiting_tokens:
            num_tokens = sum(each.num_input_tokens for each in sequences)
        if not self.has_room(call, sum(each.num_rows for each in sequences), num_tokens):
            raise QueueFullError
        for sequence in sequences:
            self._queue.add(sequence)
        self._note_small(call)

    def has_room(self, call: Call, num_rows: int, num_tokens: int = 0) -> bool:
        """Whether so many rows and tokens more of `call` may wait."""
        num_shared = self.slots_per_lane * len(self._lanes)
        num_used = min(self._num_shared_used, num_shared)
        num_waiting = self._queue.num_rows + self._num_shared_used - num_used  # here, and on the lanes
        most = self._most_rows(call, num_rows)
        if not num_waiting:
            # A call need not be small enough for the rows that others have left free.
            most, num_used = max(most, self.max_waiting), 0
        if num_waiting + num_rows > most + num_shared - num_used:
            return False
        if not self.max_waiting_tokens or not self._queue:
            return True
        most = self.max_waiting_tokens + _MORE_QUARTERS[call.priority] * (self.max_waiting_tokens // 4)
        return self._queue.num_tokens + num_tokens <= most

    def dispatch(self) -> list[tuple[Sequence, int]]:
        """Give to the lanes what there is room for; returns the sequences in their order, each with its lane."""
        sent: list[tuple[Sequence, int]] = []
        while self._queue and self._lanes:
            first = self._queue.first()
            if (lane := self._lane_for(first)) is not None:
                self._send(first, lane, sent)
            elif first.call in self._small and (reserved := self._most_reserved()).has_reserved(first):
                self._send(first, reserved, sent, is_reserved=True)
            elif (lane := self._lane_to_wait_on(first)) is not None:
                self._send(first, lane, sent)
            elif not self._send_other(first, sent):
                break
        return sent

    def start(self, sequence: Sequence) -> None:
        """A sequence that was given to a lane has started there."""
        self._lane_of(sequence).start(sequence)

    def finish(self, sequence: Sequence) -> None:
        """A sequence that was given to a lane is over, however it ended."""
        sequence.finished = True
        self._take_back(sequence, self._lane_of(sequence))
        self._note_small(sequence.call)

    def cancel(self, sequence: Sequence) -> bool:
        """Cancel a sequence that is not over. Returns True if it waited here and is gone, False if a lane has it."""
        sequence.cancelled = True
        if not sequence.waiting:
            return False
        self._queue.remove(sequence)
        sequence.finished = True
        self._note_small(sequence.call)
        return True

    def expire(self, now_s: float) -> list[Sequence]:
        """Take out the sequences that wait here and whose deadline has passed, and return them."""
        expired = self._queue.take_expired(now_s)
        for sequence in expired:
            sequence.finished = True
            self._note_small(sequence.call)
        return expired

    def set_load(self, lane: int, num_rows: int, num_waiting_rows: int) -> None:
        """Note what a lane reported, after the events of the same report: rows in use and rows waited for there.

        Both count the sequences of all fronts. Of this front's own, those under way to the lane may be missing.
        """
        if (
            known := self._lanes.get(lane)
        ) is not None:  # what others have on a retiring lane is of no matter
            known.set_load(num_rows, num_waiting_rows)

    def add_lane(self, lane: int, use: LaneUse | None = None) -> None:
        """A lane is there, with nothing of this model in it. `use` is what dispatchers of other models share."""
        assert lane not in self._lanes, "lanes have different numbers"
        room = LaneRoom(self.slots_per_lane, self.reserved_rows, self.max_step_cost)
        self._lanes[lane] = KnownLane(lane, room, use or LaneUse())

    def retire_lane(self, lane: int) -> None:
        """A lane gets nothing more. What it has goes on there; `remove_lane` follows."""
        retiring = self._retiring[lane] = self._lanes.pop(lane)
        retiring.is_retiring = True
        self._num_shared_used -= retiring.room.num_shared_used

    def is_empty(self, lane: int) -> bool:
        """Whether nothing of this front and model is left on a lane."""
        known = self._retiring.get(lane) or self._lanes.get(lane)
        return known is None or not known.room.num_sequences

    def remove_lane(self, lane: int) -> list[Sequence]:
        """A lane died. Returns the sequences that are lost with it.

        Those that had not started wait again, before all others and in their order. A cancelled one is lost, and so is
        one that has waited on too many lanes that died.
        """
        gone = self._retiring.pop(lane, None) or self._lanes.pop(lane)
        lost, again = list(gone.started), list[Sequence]()
        for sequence in gone.sent:
            sequence.num_lost_lanes += 1
            is_lost = sequence.cancelled or sequence.num_lost_lanes >= _MAX_LOST_LANES
            (lost if is_lost else again).append(sequence)
        for sequence in (*lost, *again):
            self._take_back(sequence, gone)
        for sequence in lost:
            sequence.finished = True
        for sequence in reversed(again):
            self._queue.put_back(sequence)
        for call in dict.fromkeys(sequence.call for sequence in (*lost, *again)):
            self._note_small(call)
        return lost

    def _most_rows(self, call: Call, num_rows: int) -> int:
        """Return how many rows may wait once so many more of `call` do."""
        quarter, num_few = self.max_waiting // 4, self.max_waiting // 16
        most = self.max_waiting + _MORE_QUARTERS[call.priority] * quarter
        if call.num_waiting_rows + num_rows <= num_few:
            most += quarter
            if self._queue.num_waiting_rows_of(call) + num_rows <= num_few:
                most += self.max_waiting // 8
        return most

    def _send(
        self,
        sequence: Sequence,
        lane: KnownLane,
        sent: list[tuple[Sequence, int]],
        *,
        is_reserved: bool = False,
    ) -> None:
        self._queue.take(sequence)
        sequence.is_small = sequence.call in self._small
        lane.send(sequence, is_reserved=is_reserved)
        if not is_reserved:
            self._num_shared_used += sequence.num_rows
        sequence.call.num_given_rows += sequence.num_rows
        self._note_small(sequence.call)
        sent.append((sequence, lane.index))

    def _known(self) -> list[KnownLane]:
        return [*self._lanes.values(), *self._retiring.values()]

    def _lane_of(self, sequence: Sequence) -> KnownLane:
        return self._lanes.get(sequence.lane) or self._retiring[sequence.lane]

    def _take_back(self, sequence: Sequence, lane: KnownLane) -> None:
        lane.end(sequence)
        if not sequence.is_reserved and not lane.is_retiring:
            self._num_shared_used -= sequence.num_rows
        sequence.call.num_given_rows -= sequence.num_rows

    def _note_small(self, call: Call) -> None:
        """Keep `_small` right after a change of the call's rows or of its first waiting sequence."""
        if call.waiting and call.num_given_rows + call.waiting[0].num_rows <= self.reserved_rows:
            self._small[call] = None
        else:
            self._small.pop(call, None)

    def _lane_for(self, sequence: Sequence) -> KnownLane | None:
        """Return the lane where a sequence had best start at once, or None if it could on none.

        A short one joins the fullest lane of those with few rows and no long input, then wakes an idle lane: the one
        that other models use least. What is beyond goes where least is, so that lanes share a burst evenly. The lane
        that a sequence prefers may have a few rows more than that one.
        """
        joined = idle = least = preferred = None
        max_joined = 0 if is_long(sequence) else self.rows_before_spread
        num_joined, num_least = -1, sys.maxsize
        num_rows = sequence.num_rows
        for lane in self._lanes.values():
            if num_rows > lane.num_free or (sequence.cost and not lane.room.fits_cost(sequence)):
                continue
            num_used = lane.num_rows
            if lane.index == sequence.preferred_lane:
                preferred = lane
            if not num_used:
                if idle is None or lane.use.num_rows < idle.use.num_rows:
                    idle = lane
            elif num_joined < num_used < max_joined and not lane.num_long:
                joined, num_joined = lane, num_used
            elif num_used < num_least:
                least, num_least = lane, num_used
        best = joined or idle or least
        if preferred and best and preferred.num_rows <= best.num_rows + _MAX_PREFERRED_ROWS:
            return preferred
        return best

    def _most_reserved(self) -> KnownLane:
        """Return the lane with the most reserved rows free; there must be a lane."""
        return max(self._lanes.values(), key=_num_free_reserved)

    def _lane_to_wait_on(self, sequence: Sequence) -> KnownLane | None:
        """Return the lane where a sequence had best wait, or None if it had best wait here."""
        best, num_best = None, sys.maxsize
        num_more = sequence.num_rows - self.lookahead_rows
        for lane in self._lanes.values():
            if lane.num_rows >= num_best or (num_more > lane.num_free and not lane.num_other_rows):
                continue
            if lane.may_wait(sequence, self.lookahead_rows):
                best, num_best = lane, lane.num_rows
        return best

    def _send_other(self, first: Sequence, sent: list[tuple[Sequence, int]]) -> bool:
        """Give a lane something although `first` has to wait. Returns whether there was anything to give."""
        if (other := self._overtaking(first)) is not None:
            if not first.is_overtaken_enough_by(other[0]):
                first.num_overtaking_rows += other[0].num_rows
                self._send(*other, sent)
                return True
            if self._commit(first, sent):
                return True
        if not self._small or (lane := self._most_reserved()).num_free_reserved < 1:
            return False
        # First those whose turn comes soon, so that clients take turns here too; then any, which may be far behind.
        others = (call.waiting[0] for call in itertools.islice(self._small, _MAX_LOOKED_AT))
        for sequence in itertools.chain(self._queue.firsts(_MAX_LOOKED_AT), others):
            if sequence.call in self._small and lane.has_reserved(sequence):
                self._send(sequence, lane, sent, is_reserved=True)
                return True
        return False

    def _overtaking(self, first: Sequence) -> tuple[Sequence, KnownLane] | None:
        """Return a sequence that may go before `first`, with its lane.

        Where `first` lacks rows on all lanes, any may go that needs fewer. Where it costs too much, only one that costs
        nothing: costs are given back one by one, so that it need not wait for long.
        """
        num_free = max(map(_num_free, self._lanes.values()))
        if num_free <= 0:
            return None
        waits_for_rows = first.num_rows > num_free
        for sequence in self._queue.firsts(_MAX_LOOKED_AT):
            if sequence.num_rows > num_free or (sequence.cost and not waits_for_rows):
                continue
            if (lane := self._lane_for(sequence)) is not None:
                return sequence, lane
        return None

    def _commit(self, first: Sequence, sent: list[tuple[Sequence, int]]) -> bool:
        """Give a sequence that was overtaken enough to the lane that needs to give up least for it.

        From then on its rows count as taken: no other gets them, and the lane starts it when they are free.
        """
        lanes = [lane for lane in self._lanes.values() if lane.room.num_free >= 0]
        if lanes:
            self._send(first, max(lanes, key=_num_free), sent)
        return bool(lanes)
