"""What fits into a lane: counts of rows and costs, whoever keeps them. Pure bookkeeping.

A lane's scheduler keeps one, and so does each dispatcher that gives sequences to the lane.
"""

from dataclasses import dataclass

from dragoman.server.engine.queue import Sequence

__all__ = ["LaneRoom"]

_COST_A_RESERVED_ONE = 4
"""The reserved rows may cost so much less than the others."""


@dataclass(slots=True)
class LaneRoom:
    """How many rows of a lane are taken by sequences that have not ended, and what those cost a step.

    Attributes:
        num_shared: rows for sequences of any call.
        num_reserved: further rows for calls that have few.
        max_cost: of sequences in shared rows. One that costs more has to be the only one that costs.
        num_shared_used: shared rows that are taken.
        num_reserved_used: reserved rows that are taken.
        num_sequences: that have not ended.
    """

    num_shared: int
    num_reserved: int
    max_cost: int
    num_shared_used: int = 0
    num_reserved_used: int = 0
    num_sequences: int = 0
    _shared_cost: int = 0
    _reserved_cost: int = 0

    @property
    def num_used(self) -> int:
        """Rows of sequences that have not ended."""
        return self.num_shared_used + self.num_reserved_used

    @property
    def num_free(self) -> int:
        """Rows that are free for any call; negative where more was given than the lane can start."""
        return self.num_shared - self.num_shared_used

    def fits(self, sequence: Sequence) -> bool:
        """Whether a sequence may have shared rows now."""
        return self.num_shared_used + sequence.num_rows <= self.num_shared and self.fits_cost(sequence)

    def fits_cost(self, sequence: Sequence) -> bool:
        """Whether steps stay short with a sequence in shared rows."""
        cost = sequence.cost
        return not cost or not self._shared_cost or self._shared_cost + cost <= self.max_cost

    def fits_reserved(self, sequence: Sequence) -> bool:
        """Whether there are reserved rows for a sequence, if its call has few."""
        if self.num_reserved_used + sequence.num_rows > self.num_reserved:
            return False
        cost, max_cost = sequence.cost, self.max_cost // _COST_A_RESERVED_ONE
        return not cost or not self._reserved_cost or self._reserved_cost + cost <= max_cost

    def take(self, sequence: Sequence, *, is_reserved: bool) -> None:
        """Count a sequence in."""
        sequence.is_reserved = is_reserved
        self._count(sequence, 1)

    def give_back(self, sequence: Sequence) -> None:
        """Count a sequence out, in the rows that it was counted into."""
        self._count(sequence, -1)

    def _count(self, sequence: Sequence, sign: int) -> None:
        num_rows, cost = sign * sequence.num_rows, sign * sequence.cost
        if sequence.is_reserved:
            self.num_reserved_used += num_rows
            self._reserved_cost += cost
        else:
            self.num_shared_used += num_rows
            self._shared_cost += cost
        self.num_sequences += sign
