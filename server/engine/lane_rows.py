"""Which sequence is in which row of a lane. Pure bookkeeping for `server/engine/scheduler.py`."""

from dataclasses import dataclass, field

from dragoman.server.engine.queue import Sequence

__all__ = ["LaneRows", "Move"]


@dataclass(frozen=True, slots=True)
class Move:
    """Copy a row's state to a lower row."""

    sequence: Sequence
    source: int
    target: int


@dataclass(slots=True)
class LaneRows:
    """The rows 0 .. n-1 of a lane as of its last plan: `sequences` has the sequence of each, None for a hole."""

    sequences: list[Sequence | None] = field(default_factory=list)

    def place(self, sequence: Sequence, holes: list[int]) -> list[int]:
        """Give a sequence its rows, first of `holes`, which loses them. Returns the rows."""
        taken = holes[: sequence.num_rows]
        del holes[: len(taken)]
        for row in taken:
            self.sequences[row] = sequence
        for _ in range(sequence.num_rows - len(taken)):
            taken.append(len(self.sequences))
            self.sequences.append(sequence)
        return taken

    def close_holes(self, holes: list[int]) -> list[Move]:
        """Move the last rows to the places of those that have no sequence. Returns the moves."""
        rows, moves = self.sequences, list[Move]()
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
