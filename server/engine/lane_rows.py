"""Who is in which row of a lane, and what still fits there. Pure bookkeeping for `server/engine/scheduler.py`."""

from dataclasses import dataclass, field

from dragoman.server.engine.queue import Sequence

__all__ = ["LaneRows", "Move", "is_long"]

_MAX_SHORT_TOKENS = 64
"""A longer input is worth a lane of its own: reading it takes as long as many steps, for which others would wait."""
_COST_A_RESERVED_ONE = 4
"""The reserved rows may cost so much less than the others."""


@dataclass(frozen=True, slots=True)
class Move:
    """Copy a row's state to a lower row."""

    sequence: Sequence
    source: int
    target: int


@dataclass(slots=True)
class _Taken:
    """Rows of sequences that have not ended, and what they cost."""

    num_rows: int = 0
    cost: int = 0

    def fits(self, sequence: Sequence, num_rows: int, max_cost: int) -> bool:
        """Whether a sequence fits in; one that costs more than there is has to be the only one that costs."""
        if self.num_rows + sequence.num_rows > num_rows:
            return False
        return not sequence.cost or not self.cost or self.cost + sequence.cost <= max_cost


@dataclass(slots=True)
class LaneRows:
    """Rows of a lane, as of its last plan.

    Attributes:
        num_shared: rows for sequences of any call.
        num_reserved: further rows for calls that have no more than these.
        max_cost: what sequences in shared rows may cost a step.
        rows: whose each is.
        num_sequences: that have not ended.
        num_long: rows of those of them whose inputs are long.
        num_steps_since_reading: counted by the scheduler.
    """

    num_shared: int
    num_reserved: int
    max_cost: int
    rows: list[Sequence | None] = field(default_factory=list)
    num_sequences: int = 0
    num_long: int = 0
    num_steps_since_reading: int = 0
    _shared: _Taken = field(default_factory=_Taken)
    _reserved: _Taken = field(default_factory=_Taken)

    @property
    def num_used(self) -> int:
        """Rows of sequences that have not ended."""
        return self._shared.num_rows + self._reserved.num_rows

    @property
    def num_free(self) -> int:
        """Rows that are free for any call."""
        return self.num_shared - self._shared.num_rows

    def fits(self, sequence: Sequence) -> bool:
        """Whether a sequence may have shared rows."""
        return self._shared.fits(sequence, self.num_shared, self.max_cost)

    def fits_reserved(self, sequence: Sequence) -> bool:
        """Whether a sequence may have reserved rows: its call has few, and they are free."""
        if sequence.call.num_running_rows + sequence.num_rows > self.num_reserved:
            return False
        return self._reserved.fits(sequence, self.num_reserved, self.max_cost // _COST_A_RESERVED_ONE)

    def start(self, sequence: Sequence, holes: list[int]) -> list[int]:
        """Give a sequence its rows, of `holes` first; returns them."""
        sequence.is_reserved = not self.fits(sequence)
        self._count(sequence, 1)
        taken = holes[: sequence.num_rows]
        del holes[: len(taken)]
        for row in taken:
            self.rows[row] = sequence
        for _ in range(sequence.num_rows - len(taken)):
            taken.append(len(self.rows))
            self.rows.append(sequence)
        return taken

    def end(self, sequence: Sequence) -> None:
        """A sequence has come to its end; its rows are holes from the next plan on."""
        self._count(sequence, -1)

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

    def _count(self, sequence: Sequence, sign: int) -> None:
        taken = self._reserved if sequence.is_reserved else self._shared
        taken.num_rows += sign * sequence.num_rows
        taken.cost += sign * sequence.cost
        sequence.call.num_running_rows += sign * sequence.num_rows
        self.num_sequences += sign
        self.num_long += sign * is_long(sequence) * sequence.num_rows


def is_long(sequence: Sequence) -> bool:
    """Whether a sequence's input is worth a lane of its own."""
    return sequence.num_input_tokens > _MAX_SHORT_TOKENS
