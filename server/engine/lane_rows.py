"""Which sequence is in which row of a lane. Pure bookkeeping for `server/engine/scheduler.py`."""

from dataclasses import dataclass, field

from dragoman.server.engine.lane_room import LaneRoom
from dragoman.server.engine.queue import Sequence

__all__ = ["LaneRows", "Move"]


@dataclass(frozen=True, slots=True)
class Move:
    """Copy a row's state to a lower row."""

    sequence: Sequence
    source: int
    target: int


@dataclass(slots=True)
class LaneRows(LaneRoom):
    """Rows of a lane, as of its last plan.

    Attributes:
        rows: the sequence of each.
        num_steps_since_reading: counted by the scheduler.
    """

    rows: list[Sequence | None] = field(default_factory=list)
    num_steps_since_reading: int = 0

    def start(self, sequence: Sequence, holes: list[int]) -> list[int]:
        """Give a sequence its rows, of `holes` first; returns them."""
        self.take(sequence, is_reserved=not self.fits(sequence))
        taken = holes[: sequence.num_rows]
        del holes[: len(taken)]
        for row in taken:
            self.rows[row] = sequence
        for _ in range(sequence.num_rows - len(taken)):
            taken.append(len(self.rows))
            self.rows.append(sequence)
        return taken

    def close_holes(self, holes: list[int]) -> list[Move]:
        """Have the last rows take the places of those that are nobody's."""
        rows, moves = self.rows, list[Move]()
        for hole in holes:
            while rows and rows[-1] is None:
                rows.pop()
            if hole >= len(rows):
                return moves
            last = rows.pop()
            assert last is not None
            rows[hole] = last
            moves.append(Move(last, len(rows), hole))
        while rows and rows[-1] is None:
            rows.pop()
        return moves
