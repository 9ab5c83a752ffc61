"""Which sequences of a lane run in which rows, decided once a step. Pure bookkeeping: no clock, no I/O, no threads.

A lane owns the rows 0 .. n-1, without gaps: a row that ends is filled by a waiting sequence or,
when none waits, by the last row, so that a step never computes a row for nothing (iteration-level scheduling, Orca,
Yu et al. 2022). A sequence has one row, or with beam search one for each hypothesis, in no particular places.

The queue is short where fronts send what there is room for (`server/engine/dispatcher.py`), and holds everything where
a fixed list is decoded (`server/engine/offline.py`). What waits takes turns in it (`server/engine/queue.py`).
"""

import sys
from dataclasses import dataclass, field
from enum import Enum, auto

from dragoman.server.engine.lane_room import LaneRoom
from dragoman.server.engine.lane_rows import LaneRows, Move
from dragoman.server.engine.queue import Call, Queue, Sequence
from dragoman.server.priority import DEFAULT_WEIGHTS, Weights

__all__ = [
    "ENCODE_TOGETHER",
    "MAX_START_INTERVAL",
    "MAX_START_TOKENS",
    "MAX_START_TOKENS_ON_DEVICE",
    "Call",
    "Departure",
    "Move",
    "Plan",
    "Scheduler",
    "Sequence",
]

MAX_START_TOKENS = 2048
"""Input tokens that a lane encodes before one step: more would hold up the rows that run for as long as many steps."""
MAX_START_TOKENS_ON_DEVICE = 16_384
"""On a GPU, which encodes so many in the time of few."""
MAX_START_INTERVAL = 4
"""Steps that a well-filled lane lets pass before it encodes again: a source among four costs half of one alone."""
ENCODE_TOGETHER = 8
"""Searches that a lane encodes when it encodes one: the gain of more is small, and they wait in memory of their own."""
_MAX_LOOKED_AT = 64
"""Calls among which one is looked for that may start while the first may not."""


class Departure(Enum):
    """Why a sequence was taken out before it was finished."""

    CANCELLED = auto()
    EXPIRED = auto()


@dataclass(slots=True)
class Plan:
    """What a lane does next: moves first, then starts, then one step over `num_rows` rows.

    Attributes:
        dropped: sequences that were taken out, each with the reason.
        moves: rows that close gaps.
        starts: sequences with their rows.
        ahead: sequences that wait for rows, and that the lane may encode together with those that start. It sets
            `is_encoded` for those that it did encode.
        num_rows: of the step.
    """

    dropped: list[tuple[Sequence, Departure]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    starts: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    ahead: list[Sequence] = field(default_factory=list)
    num_rows: int = 0


class Scheduler:
    """The rows of a lane and the queue in front of them.

    Args:
        num_slots: rows for any sequence.
        reserved_rows: further rows, for small sequences while the others are taken.
        max_step_cost: of sequences that run together, so that steps stay short. One sequence is always allowed,
            whatever it costs; the reserved rows may cost a quarter more.
        max_start_tokens: input tokens that may be encoded before one step. One sequence is always allowed, however
            long.
        max_start_interval: steps that a well-filled lane lets pass before it encodes inputs again, so that they are
            encoded together and not one by one. 1: it starts what there is before each step.
        encode_together: inputs that the lane encodes when it encodes one, if so many searches wait. 1: none before
            it has a row.
        weights: rows of a priority's turn.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        reserved_rows: int = 0,
        max_step_cost: int = sys.maxsize,
        max_start_tokens: int = MAX_START_TOKENS,
        max_start_interval: int = 1,
        encode_together: int = 1,
        weights: Weights = DEFAULT_WEIGHTS,
    ) -> None:
        self.num_slots = num_slots
        self.max_start_tokens = max_start_tokens
        self.max_start_interval = max_start_interval
        self.encode_together = encode_together
        self._room = LaneRoom(num_slots, reserved_rows, max_step_cost)
        self._rows = LaneRows()
        self._queue = Queue(weights)
        self._num_steps_since_start = 0

    @property
    def num_used_rows(self) -> int:
        """Rows of the sequences that run."""
        return self._room.num_used

    @property
    def num_waiting_rows(self) -> int:
        """Rows that the sequences in the queue need."""
        return self._queue.num_rows

    @property
    def has_work(self) -> bool:
        """Whether `plan` has anything to do."""
        return bool(self._rows.sequences) or bool(self._queue)

    def submit(self, *sequences: Sequence) -> None:
        """Queue sequences, each of at most `num_slots` rows."""
        for sequence in sequences:
            assert 1 <= sequence.num_rows <= self.num_slots, "it could never start"
            self._queue.add(sequence)

    def cancel(self, sequence: Sequence) -> bool:
        """Take a sequence out: at once if it waits (True), before the next step if it runs (False)."""
        sequence.cancelled = True
        was_waiting = sequence.waiting
        if was_waiting:
            self._queue.remove(sequence)
            sequence.finished = True
        return was_waiting

    def finish(self, sequence: Sequence) -> None:
        """A running sequence has come to its end; its rows are taken again from the next plan on."""
        sequence.finished = True
        self._room.give_back(sequence)

    def evict(self) -> list[Sequence]:
        """Empty all rows, after a step that failed; returns the sequences that were running."""
        rows = self._rows.sequences
        running = [each for each in dict.fromkeys(rows) if each is not None and not each.finished]
        rows.clear()
        for sequence in running:
            self.finish(sequence)
        return running

    def plan(self, now_s: float, num_steps_taken: int = 1) -> Plan:
        """Decide the next step, after `num_steps_taken` since the last plan.

        `now_s` is in seconds on the caller's clock.
        """
        plan = Plan()
        for sequence in self._queue.take_expired(now_s):
            sequence.finished = True
            plan.dropped.append((sequence, Departure.EXPIRED))
        holes = self._free_rows(plan, now_s)
        self._num_steps_since_start += num_steps_taken
        if self._queue:
            self._start_waiting(plan, holes)
        if holes:
            plan.moves = self._rows.close_holes(holes)
        plan.num_rows = len(self._rows.sequences)
        return plan

    def _free_rows(self, plan: Plan, now_s: float) -> list[int]:
        """Take out sequences that have ended, were cancelled or are too late. Returns the rows that are free now."""
        rows, holes = self._rows.sequences, []
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

    def _start_waiting(self, plan: Plan, holes: list[int]) -> None:
        # The fuller the lane, the more an encoding holds up, and the sooner another can share it.
        interval = min(self.max_start_interval, self._room.num_sequences // 2)
        may_encode = self._num_steps_since_start >= interval
        num_encoded = num_tokens = 0
        while (found := self._next()) is not None and (may_encode or found[0].is_encoded):
            sequence, is_reserved = found
            num_tokens += 0 if sequence.is_encoded else sequence.num_input_tokens
            if plan.starts and num_tokens > self.max_start_tokens:
                break
            num_encoded += not sequence.is_encoded
            plan.starts.append((sequence, self._start(sequence, holes, is_reserved=is_reserved)))
        if num_encoded:
            self._num_steps_since_start = 0
            self._select_ahead(plan, self.encode_together - num_encoded, num_tokens)

    def _next(self) -> tuple[Sequence, bool] | None:
        """Return the sequence that may start next, and whether in reserved rows.

        It is the first, or another while the first does not fit. Where the first lacks rows, another may overtake it
        that needs fewer; where it costs too much, only one that costs nothing. A small one may have reserved rows.
        """
        if not self._queue:
            return None
        room, first = self._room, self._queue.first()
        if room.fits(first):
            return first, False
        if room.num_free <= 0 and room.num_reserved_used >= room.num_reserved:
            return None
        lacks_rows = first.num_rows > room.num_free
        for sequence in self._queue.firsts(_MAX_LOOKED_AT):
            may_overtake = (lacks_rows or not sequence.cost) and not first.is_overtaken_enough_by(sequence)
            if may_overtake and room.fits(sequence):
                return sequence, False
            if sequence.is_small and room.fits_reserved(sequence):
                return sequence, True
        return None

    def _start(self, sequence: Sequence, holes: list[int], *, is_reserved: bool) -> list[int]:
        """Take a sequence from the queue into rows; returns them."""
        first = self._queue.first()
        if sequence is not first and not is_reserved:
            first.num_overtaking_rows += sequence.num_rows
        self._queue.take(sequence)
        self._room.take(sequence, is_reserved=is_reserved)
        return self._rows.place(sequence, holes)

    def _select_ahead(self, plan: Plan, most: int, num_tokens: int) -> None:
        """Select waiting sequences to encode together with the starting ones.

        Only searches are selected, up to the first single row in the queue: of a lane's many single rows several end at
        a time, of its few searches one.
        """
        if most < 1:
            return
        for sequence in self._queue:
            if sequence.is_encoded:
                continue
            num_tokens += sequence.num_input_tokens
            if sequence.num_rows == 1 or len(plan.ahead) >= most or num_tokens > self.max_start_tokens:
                return
            plan.ahead.append(sequence)
