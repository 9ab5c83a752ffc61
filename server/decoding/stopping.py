"""Ending a sequence before the model does."""

from typing import Protocol, Self

__all__ = ["StopCondition"]


class StopCondition(Protocol):
    """Looks at tokens as they come, on the lane's thread."""

    def accept(self, token_id: int) -> bool:
        """Take one token; True ends the sequence there."""

    def fork(self) -> Self:
        """A copy for a hypothesis that goes on differently from here."""
