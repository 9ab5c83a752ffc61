"""Classes of calls that share the lanes unevenly while they wait. Pure data."""

import enum

__all__ = ["DEFAULT_WEIGHTS", "Priority", "Weights"]


class Priority(enum.IntEnum):
    """How soon a call's waiting sequences get their turns. The value is the place in `Weights`."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


Weights = tuple[int, int, int]
"""Rows of a turn, by priority. Each class has at least one, so none starves."""

DEFAULT_WEIGHTS: Weights = (16, 4, 1)
