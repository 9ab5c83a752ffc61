"""Which sequences run in which rows, decided once a step. Pure bookkeeping: no clock, no I/O, no threads.

A lane owns the rows 0 .. n-1 of its arena, without gaps: a row that ends is filled by a waiting sequence or,
when none waits, by the last row, so that a step never computes for nobody (iteration-level scheduling, Orca,
Yu et al. 2022). A sequence has one row, or with beam search one for each hypothesis, all of one lane and in no
particular places. Waiting sequences are shared by all lanes, and calls take turns (`server/engine/queue.py`). A few
run on one lane while the others rest: a step of four rows costs little more than one of a single row. Beyond those a
lane takes no more than its even share of all the work there is, so that a burst spreads over the cores.

However much one call has, another need not wait for its end: some rows of each lane and a part of the queue are
reserved for calls that have little there.

The caller hands in the time and holds a lock if it uses threads.
"""

import sys
from dataclasses import dataclass, field
from enum import Enum, auto

from dragoman.server.engine.lane_room import is_long
from dragoman.server.engine.lane_rows import LaneRows, Move
from dragoman.server.engine.queue import Call, Queue, QueueFullError, Sequence

__all__ = ["Call", "Departure", "Move", "Plan", "QueueFullError", "Scheduler", "Sequence"]

_MAX_LOOKED_AT = 64
"""Calls among which one is looked for that may start while the first may not."""


class Departure(Enum):
    """Why a sequence was taken out before it was finished."""

    CANCELLED = auto()
    EXPIRED = auto()


@dataclass(slots=True)
class Plan:
    """What a lane does next: moves first, then starts, then one step over `num_rows` rows.

    `ahead` wait for a row, but are read together with those that start.
    """

    dropped: list[tuple[Sequence, Departure]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    starts: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    ahead: list[Sequence] = field(default_factory=list)
    num_rows: int = 0


class Scheduler:
    """Rows of `num_lanes` lanes and the queue in front of them.

    Args:
        num_lanes: arenas that step on their own.
        slots_per_lane: rows of each arena.
        max_waiting: rows that may be waited for; a call that needs one more is refused, unless it is a small one: a
            quarter more may be waited for by calls that need no more than a sixteenth.
        max_start_tokens: input tokens a lane may read before one step, so that rows already running are
            not held up for long. One sequence is always allowed, however long.
        rows_before_spread: rows up to which a lane that runs is filled before an idle one starts. 1: all lanes
            start as soon as there is work.
        max_start_interval: steps that a well-filled lane lets pass before it reads inputs again, so that they are
            read together and not one by one. 1: it starts what there is before each step.
        read_together: inputs that a lane reads when it reads one, if so many searches wait. 1: none before it has a
            row.
        reserved_rows: rows that each lane has beside its `slots_per_lane`. While those are taken, a call that has no
            more than `reserved_rows` on all lanes may start there.
        max_step_cost: of sequences that run together on a lane, so that its steps stay short. One sequence is always
            allowed, whatever it costs; the reserved rows may cost a quarter more.
    """

    def __init__(
        self,
        num_lanes: int,
        slots_per_lane: int,
        max_waiting: int,
        max_start_tokens: int,
        *,
        rows_before_spread: int = 1,
        max_start_interval: int = 1,
        read_together: int = 1,
        reserved_rows: int = 0,
        max_step_cost: int = sys.maxsize,
    ) -> None:
        self.slots_per_lane = slots_per_lane
        self.max_waiting = max_waiting
        self.max_start_tokens = max_start_tokens
        self.rows_before_spread = rows_before_spread
        self.max_start_interval = max_start_interval
        self.read_together = read_together
        self.reserved_rows = reserved_rows
        self._lanes = [LaneRows(slots_per_lane, reserved_rows, max_step_cost) for _ in range(num_lanes)]
        self._queue = Queue()
        self.num_running = 0
        self.num_used_slots = 0

    @property
    def num_slots(self) -> int:
        """Rows of all lanes, the reserved ones included."""
        return (self.slots_per_lane + self.reserved_rows) * len(self._lanes)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._queue)

    @property
    def num_waiting_rows(self) -> int:
        """Rows that the sequences in the queue need."""
        return self._queue.num_rows

    def submit(self, *sequences: Sequence) -> None:
        """Queue sequences of one call, each of at most `slots_per_lane` rows: all of them or none.

        Raises:
            QueueFullError: more rows would wait than may, those not counted that are free for them; while nothing
                waits, those of all lanes.
        """
        assert all(1 <= each.num_rows <= self.slots_per_lane for each in sequences), "it could never start"
        if not sequences:
            return
        num_rows = sum(each.num_rows for each in sequences)
        most = self.max_waiting
        if sequences[0].call.num_waiting_rows + num_rows <= self.max_waiting // 16:
            most += self.max_waiting // 4
        # While nothing waits a call need not be small enough for the rows that others have left free.
        num_free = sum(lane.num_free if self._queue else lane.num_shared for lane in self._lanes)
        if self._queue.num_rows + num_rows > most + num_free:
            raise QueueFullError
        for sequence in sequences:
            self._queue.add(sequence)

    def cancel(self, sequence: Sequence) -> bool:
        """Take a sequence out: at once if it waits (True), before its lane's next step if it runs (False)."""
        sequence.cancelled = True
        was_waiting = sequence.waiting
        if was_waiting:
            self._queue.remove(sequence)
            sequence.finished = True
        return was_waiting

    def end_reading(self, sequence: Sequence, *, is_read: bool) -> bool:
        """End the encoding of a waiting sequence. Returns True when it still waits and its encoding succeeded."""
        sequence.is_claimed = False
        sequence.is_read = is_read and sequence.waiting
        return sequence.is_read

    def finish(self, sequence: Sequence) -> None:
        """A running sequence has come to its end; its rows are taken again from the next plan on."""
        sequence.finished = True
        self.num_running -= 1
        self.num_used_slots -= sequence.num_rows
        self._lanes[sequence.lane].give_back(sequence)

    def has_work(self, lane: int) -> bool:
        """Whether `plan(lane)` has anything to do, apart from deadlines of the waiting."""
        return bool(self._lanes[lane].rows) or self._is_spread()

    def wants_idle_lane(self) -> bool:
        """Whether a lane that has no work until now should ask for a plan."""
        return self._is_spread() and not all(lane.rows for lane in self._lanes)

    def evict(self, lane: int) -> list[Sequence]:
        """Empty the rows of a lane that failed; returns the sequences that were running there."""
        rows = self._lanes[lane].rows
        running = list(
            dict.fromkeys(sequence for sequence in rows if sequence is not None and not sequence.finished)
        )
        rows.clear()
        for sequence in running:
            self.finish(sequence)
        return running

    def plan(self, lane: int, now_s: float, num_steps: int = 1) -> Plan:
        """Decide the next step of `lane`, which took `num_steps` since its last plan.

        `now_s` is in seconds on the caller's clock.
        """
        plan = Plan()
        mine = self._lanes[lane]
        for sequence in self._queue.take_expired(now_s):
            sequence.finished = True
            plan.dropped.append((sequence, Departure.EXPIRED))
        holes = self._free_rows(mine.rows, plan, now_s)
        mine.num_steps_since_reading += num_steps
        if self._queue:
            self._start_waiting(lane, plan, holes)
        if holes:
            plan.moves = mine.close_holes(holes)
        plan.num_rows = len(mine.rows)
        return plan

    def _free_rows(self, rows: list[Sequence | None], plan: Plan, now_s: float) -> list[int]:
        """Take out sequences that have ended, were cancelled or are too late. Returns the rows that are free now."""
        holes = []
        for row, sequence in enumerate(rows):
            assert sequence is not None, "every plan leaves its rows without gaps"
            if not sequence.finished:
                if sequence.cancelled:
                    departure = Departure.CANCELLED
                elif sequence.deadline_s is not None and now_s >= sequence.deadline_s:
                    departure = Departure.EXPIRED
                else:
                    continue
                self.finish(sequence)
                plan.dropped.append((sequence, departure))
            rows[row] = None
            holes.append(row)
        return holes

    def _is_spread(self) -> bool:
        """Whether more waits than the lanes that run will take at their next starts."""
        if not self._queue:
            return False
        first = self._queue.first()
        if self.rows_before_spread == 1 or is_long(first):
            return True
        limit = min(self.rows_before_spread, self.slots_per_lane)
        return self._queue.num_rows > sum(
            max(0, limit - lane.num_used)
            for lane in self._lanes
            if lane.rows and not lane.num_long and lane.fits(first)
        )

    def _next(self, lane: LaneRows) -> Sequence | None:
        """Return the sequence that may start in the lane next: the first, or another while the first does not fit.

        One that another lane reads at this moment is left to wait by a lane that has others to go on with.
        """
        if not self._queue:
            return None
        first = self._queue.first()
        if first.is_claimed and lane.num_used:
            return None
        share = -(-(self.num_used_slots + self._queue.num_rows) // len(self._lanes))
        if not lane.num_long and not is_long(first):
            share = max(share, self.rows_before_spread)
        if lane.num_used >= share:
            return None
        return first if lane.fits(first) else self._next_other(lane, first)

    def _next_other(self, lane: LaneRows, first: Sequence) -> Sequence | None:
        """Return a sequence that may start although `first` does not fit: in reserved rows, or at no cost."""
        waits_for_rows = first.num_rows > lane.num_free
        if waits_for_rows and lane.num_used >= lane.num_shared + lane.num_reserved:
            return None
        for sequence in self._queue.firsts(_MAX_LOOKED_AT):
            if sequence.is_claimed:
                continue
            is_small = sequence.call.num_running_rows + sequence.num_rows <= lane.num_reserved
            if is_small and lane.fits_reserved(sequence):
                return sequence
            if not waits_for_rows and not sequence.cost and lane.fits(sequence):
                return sequence
        return None

    def _start_waiting(self, lane: int, plan: Plan, holes: list[int]) -> None:
        mine = self._lanes[lane]
        # The fuller the lane, the more a reading holds up, and the sooner another can share it.
        may_read = mine.num_steps_since_reading >= min(self.max_start_interval, mine.num_sequences // 2)
        num_read = num_tokens = 0
        while (sequence := self._next(mine)) is not None and (may_read or sequence.is_read):
            num_tokens += 0 if sequence.is_read else sequence.num_input_tokens
            if plan.starts and num_tokens > self.max_start_tokens:
                break
            num_read += not sequence.is_read
            plan.starts.append((sequence, self._start(sequence, lane, holes)))
        if num_read:
            mine.num_steps_since_reading = 0
            self._read_ahead(lane, plan, self.read_together - num_read, num_tokens)

    def _start(self, sequence: Sequence, lane: int, holes: list[int]) -> list[int]:
        """Take a sequence from the queue into a lane; returns its rows."""
        self._queue.take(sequence)
        sequence.lane = lane
        self.num_running += 1
        self.num_used_slots += sequence.num_rows
        return self._lanes[lane].start(sequence, holes)

    def _read_ahead(self, lane: int, plan: Plan, most: int, num_tokens: int) -> None:
        """Select waiting sequences to encode together with the starting ones.

        Skips a sequence that another lane could start at once. Only searches are selected, up to the first single row
        in the queue: of a lane's many single rows several end at a time, of its few searches one.
        """
        if most < 1:
            return
        mine = self._lanes[lane]
        num_free = sum(other.num_free for other in self._lanes if other is not mine)
        for sequence in self._queue:
            num_free -= sequence.num_rows
            if num_free >= 0 or sequence.is_read or sequence.is_claimed:
                continue
            num_tokens += sequence.num_input_tokens
            if sequence.num_rows == 1 or len(plan.ahead) >= most or num_tokens > self.max_start_tokens:
                return
            sequence.is_claimed = True
            plan.ahead.append(sequence)
