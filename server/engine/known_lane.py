"""A lane as a front's dispatcher knows it: what was sent there, what others have there, what room is left.

Pure bookkeeping. What a lane does with the sequences that it was given, it says in its reports.
"""

from dataclasses import dataclass, field

from dragoman.server.engine.lane_room import LaneRoom
from dragoman.server.engine.queue import Sequence

__all__ = ["KnownLane", "LaneUse", "is_long"]

_MAX_SHORT_TOKENS = 64
"""A longer input is worth a lane of its own: encoding it takes as long as many steps, for which others would wait."""


@dataclass(slots=True)
class LaneUse:
    """Rows that a front's sequences of all models need on a lane. The dispatchers of the models share it."""

    num_rows: int = 0


@dataclass(slots=True)
class KnownLane:
    """What a front knows of a lane, as far as one model is concerned.

    Attributes:
        index: its number.
        room: rows of the sequences that this front gave to it.
        use: of all models.
        is_retiring: whether the lane gets nothing more.
        sent: sequences that were given and have not started, in their order.
        started: sequences that have started.
        num_sent_rows: of `sent`.
        num_started_rows: of `started`.
        num_long: sequences of both whose inputs are long.
        num_other_rows: that other fronts' sequences run in and wait for, as the lane said last.
        num_other_reserved: reserved rows that they run in.
        num_rows: that all fronts' sequences need here.
        num_free: shared rows that a sequence could start in at once; negative where some are waited for.
        num_free_reserved: reserved rows that a sequence could start in at once.
    """

    index: int
    room: LaneRoom
    use: LaneUse = field(default_factory=LaneUse)
    is_retiring: bool = False
    sent: dict[Sequence, None] = field(default_factory=dict)
    started: dict[Sequence, None] = field(default_factory=dict)
    num_sent_rows: int = 0
    num_started_rows: int = 0
    num_long: int = 0
    num_other_rows: int = 0
    num_other_reserved: int = 0
    num_rows: int = 0
    num_free: int = 0
    num_free_reserved: int = 0

    def __post_init__(self) -> None:
        self._count()

    def has_reserved(self, sequence: Sequence) -> bool:
        """Whether a sequence of a small call could start in reserved rows at once."""
        return sequence.num_rows <= self.num_free_reserved and self.room.fits_reserved(sequence)

    def may_wait(self, sequence: Sequence, lookahead_rows: int) -> bool:
        """Whether a sequence that cannot start at once may wait on the lane.

        Where it is other fronts that have taken the rows, a front may always have one sequence there, or a few: the
        lane's queue gives calls their turns, and a lane that has nothing of a front tells it nothing.
        """
        num_more = sequence.num_rows - lookahead_rows
        if num_more <= min(0, self.num_free):
            return self.room.fits_cost(sequence)
        if not self.num_other_rows or not self.room.fits(sequence):
            return False
        return not self.num_sent_rows or self.num_sent_rows + num_more <= 0

    def send(self, sequence: Sequence, *, is_reserved: bool) -> None:
        """Count in a sequence that is given to the lane."""
        sequence.lane = self.index
        self.sent[sequence] = None
        self.num_sent_rows += sequence.num_rows
        self.num_long += is_long(sequence)
        self.use.num_rows += sequence.num_rows
        self.room.take(sequence, is_reserved=is_reserved)
        self._count()

    def start(self, sequence: Sequence) -> None:
        """A sequence that was given has started."""
        del self.sent[sequence]
        self.started[sequence] = None
        self.num_sent_rows -= sequence.num_rows
        self.num_started_rows += sequence.num_rows

    def end(self, sequence: Sequence) -> None:
        """Count out a sequence, started or not."""
        if sequence in self.started:
            del self.started[sequence]
            self.num_started_rows -= sequence.num_rows
        else:
            del self.sent[sequence]
            self.num_sent_rows -= sequence.num_rows
        self.num_long -= is_long(sequence)
        self.use.num_rows -= sequence.num_rows
        self.room.give_back(sequence)
        self._count()

    def set_load(self, num_rows: int, num_waiting_rows: int) -> None:
        """Learn what others have here: the load of all less what is this front's."""
        num_waiting_others = max(0, num_waiting_rows - self.num_sent_rows)
        self.num_other_rows = max(0, num_rows - self.num_started_rows) + num_waiting_others
        self.num_other_reserved = max(0, num_rows - self.room.num_shared - self.room.num_reserved_used)
        self._count()

    def _count(self) -> None:
        room, num_others = self.room, self.num_other_rows
        self.num_rows = room.num_shared_used + room.num_reserved_used + num_others
        self.num_free = room.num_shared - room.num_shared_used - num_others
        self.num_free_reserved = room.num_reserved - room.num_reserved_used - self.num_other_reserved


def is_long(sequence: Sequence) -> bool:
    """Whether encoding an input takes as long as many steps."""
    return sequence.num_input_tokens > _MAX_SHORT_TOKENS
