"""Which sequences run in which rows, decided once a step. Pure bookkeeping: no clock, no I/O, no threads.

A lane owns the rows 0 .. n-1 of its arena, without gaps: a row that ends is filled by a waiting sequence or,
when none waits, by the last row, so that a step never computes for nobody (iteration-level scheduling, Orca,
Yu et al. 2022). A sequence has one row, or with beam search one for each hypothesis, all of one lane and in no
particular places. Waiting sequences are shared by all lanes, first come first served; a lane takes no more than
its even share of all the work there is, so that a burst spreads over the cores.

The caller hands in the time and holds a lock if it uses threads.
"""

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

__all__ = ["Departure", "Move", "Plan", "QueueFullError", "Scheduler", "Sequence"]


class Departure(Enum):
    """Why a sequence was taken out before it was finished."""

    CANCELLED = auto()
    EXPIRED = auto()


class QueueFullError(Exception):
    """As many sequences wait as are allowed to."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One input as the scheduler sees it: its length, its rows, its deadline, its place."""

    num_input_tokens: int
    deadline_s: float | None = None
    num_rows: int = 1
    cancelled: bool = False
    waiting: bool = True
    finished: bool = False

    def departure(self, now_s: float) -> Departure | None:
        """Why it should be dropped at `now_s`, if it should."""
        if self.cancelled:
            return Departure.CANCELLED
        if self.deadline_s is not None and now_s >= self.deadline_s:
            return Departure.EXPIRED
        return None


@dataclass(frozen=True, slots=True)
class Move:
    """Copy a row's state to a lower row."""

    sequence: Sequence
    source: int
    target: int


@dataclass(slots=True)
class Plan:
    """What a lane does next: moves first, then starts, then one step over `num_rows` rows."""

    dropped: list[tuple[Sequence, Departure]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    starts: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    num_rows: int = 0


class Scheduler:
    """Rows of `num_lanes` lanes and the queue in front of them.

    Args:
        num_lanes: arenas that step on their own.
        slots_per_lane: rows of each arena.
        max_waiting: rows that may be waited for; a sequence that needs one more is refused.
        max_start_tokens: input tokens a lane may start with before one step, so that rows already running are
            not held up for long. One sequence is always allowed, however long.
    """

    def __init__(self, num_lanes: int, slots_per_lane: int, max_waiting: int, max_start_tokens: int) -> None:
        self.slots_per_lane = slots_per_lane
        self.max_waiting = max_waiting
        self.max_start_tokens = max_start_tokens
        self._rows: list[list[Sequence | None]] = [[] for _ in range(num_lanes)]
        self._waiting: deque[Sequence] = deque()
        self._deadlines: list[tuple[float, int, Sequence]] = []  # a heap over the waiting
        self._order = itertools.count()
        self._num_waiting_rows = 0
        self.num_running = 0
        self.num_used_slots = 0

    @property
    def num_slots(self) -> int:
        """Rows of all lanes."""
        return self.slots_per_lane * len(self._rows)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence, of at most `slots_per_lane` rows.

        Raises:
            QueueFullError: more than `max_waiting` rows would wait, those not counted that are free for them.
        """
        assert 1 <= sequence.num_rows <= self.slots_per_lane, "it could never start"
        num_free = self.num_slots - self.num_used_slots
        if self._num_waiting_rows + sequence.num_rows > self.max_waiting + num_free:
            raise QueueFullError
        self._waiting.append(sequence)
        self._num_waiting_rows += sequence.num_rows
        if sequence.deadline_s is not None:
            self._forget_stale_deadlines()
            heapq.heappush(self._deadlines, (sequence.deadline_s, next(self._order), sequence))

    def cancel(self, sequence: Sequence) -> bool:
        """Take a sequence out: at once if it waits (True), before its lane's next step if it runs (False)."""
        sequence.cancelled = True
        was_waiting = sequence.waiting
        if was_waiting:
            self._leave_queue(sequence)
        return was_waiting

    def finish(self, sequence: Sequence) -> None:
        """A running sequence has come to its end; its rows are taken again from the next plan on."""
        sequence.finished = True
        self.num_running -= 1
        self.num_used_slots -= sequence.num_rows

    def has_work(self, lane: int) -> bool:
        """Whether `plan(lane)` has anything to do, apart from deadlines of the waiting."""
        return bool(self._rows[lane]) or self._may_start(self._num_used_rows(lane))

    def evict(self, lane: int) -> list[Sequence]:
        """Empty the rows of a lane that failed; returns the sequences that were running there."""
        running = list(
            dict.fromkeys(
                sequence for sequence in self._rows[lane] if sequence is not None and not sequence.finished
            )
        )
        self._rows[lane].clear()
        for sequence in running:
            self.finish(sequence)
        return running

    def plan(self, lane: int, now_s: float) -> Plan:
        """Decide the next step of `lane` at time `now_s` (seconds on the caller's clock)."""
        plan = Plan()
        rows = self._rows[lane]
        self._drop_expired_waiting(plan, now_s)
        self._free_rows(rows, plan, now_s)
        holes = [row for row, sequence in enumerate(rows) if sequence is None]
        self._start_waiting(lane, plan, holes)
        self._close_holes(rows, plan, holes)
        plan.num_rows = len(rows)
        return plan

    def _drop_expired_waiting(self, plan: Plan, now_s: float) -> None:
        while self._deadlines and (self._deadlines[0][0] <= now_s or not self._deadlines[0][2].waiting):
            sequence = heapq.heappop(self._deadlines)[2]
            if sequence.waiting:
                self._leave_queue(sequence)
                plan.dropped.append((sequence, Departure.EXPIRED))

    def _forget_stale_deadlines(self) -> None:
        """Keep the heap in proportion to the queue: far deadlines of answered sequences would pile up in it."""
        if len(self._deadlines) > 2 * len(self._waiting) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
            heapq.heapify(self._deadlines)

    def _leave_queue(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        self._num_waiting_rows -= sequence.num_rows
        sequence.waiting = False
        sequence.finished = True

    def _free_rows(self, rows: list[Sequence | None], plan: Plan, now_s: float) -> None:
        for row, sequence in enumerate(rows):
            assert sequence is not None, "every plan leaves its rows without gaps"
            if not sequence.finished:
                departure = sequence.departure(now_s)
                if departure is None:
                    continue
                self.finish(sequence)
                plan.dropped.append((sequence, departure))
            rows[row] = None

    def _num_used_rows(self, lane: int) -> int:
        return sum(sequence is not None and not sequence.finished for sequence in self._rows[lane])

    def _may_start(self, num_used_rows: int) -> bool:
        """Whether the first in line fits beside `num_used_rows` and the lane has not its even share of all rows."""
        if not self._waiting:
            return False
        share = -(-(self.num_used_slots + self._num_waiting_rows) // len(self._rows))
        return num_used_rows < share and num_used_rows + self._waiting[0].num_rows <= self.slots_per_lane

    def _start_waiting(self, lane: int, plan: Plan, holes: list[int]) -> None:
        num_used_rows = self._num_used_rows(lane)
        num_tokens = 0
        while self._may_start(num_used_rows):
            sequence = self._waiting[0]
            num_tokens += sequence.num_input_tokens
            if plan.starts and num_tokens > self.max_start_tokens:
                return
            self._waiting.popleft()
            sequence.waiting = False
            self._num_waiting_rows -= sequence.num_rows
            self.num_running += 1
            self.num_used_slots += sequence.num_rows
            num_used_rows += sequence.num_rows
            plan.starts.append((sequence, self._take_rows(self._rows[lane], holes, sequence)))

    @staticmethod
    def _take_rows(rows: list[Sequence | None], holes: list[int], sequence: Sequence) -> list[int]:
        taken = holes[: sequence.num_rows]
        del holes[: len(taken)]
        for row in taken:
            rows[row] = sequence
        for _ in range(sequence.num_rows - len(taken)):
            taken.append(len(rows))
            rows.append(sequence)
        return taken

    @staticmethod
    def _close_holes(rows: list[Sequence | None], plan: Plan, holes: list[int]) -> None:
        for hole in holes:
            while rows and rows[-1] is None:
                rows.pop()
            if hole >= len(rows):
                return
            last = rows.pop()
            assert last is not None
            rows[hole] = last
            plan.moves.append(Move(last, len(rows), hole))
        while rows and rows[-1] is None:
            rows.pop()
