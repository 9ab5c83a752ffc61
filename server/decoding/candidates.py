"""The most probable tokens of many rows, without sorting vocabularies."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["top_candidates"]

_BLOCK = 64


def top_candidates(
    rows: NDArray[np.float32], num_candidates: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest values of each row and where they are.

    Exact, as a sort would give it, in about two passes: of the maxima of blocks of 64, the k-th largest is at
    most the row's k-th largest value, so only what reaches it is looked at.

    Args:
        rows: (R, V).
        num_candidates: k, cut to V.

    Returns:
        Values and indices, (R, k) each, largest first, equal ones in the order of their indices.
    """
    num_rows, size = rows.shape
    num_candidates = min(num_candidates, size)
    thresholds = _thresholds(rows, num_candidates)
    places, indices = np.nonzero(rows >= thresholds[:, None])
    values = rows[places, indices]
    order = np.lexsort((indices, -values, places))
    starts = np.searchsorted(places, np.arange(num_rows))  # nonzero gives rows in order
    chosen = order[starts[:, None] + np.arange(num_candidates)]
    return values[chosen], indices[chosen]


def _thresholds(rows: NDArray[np.float32], num_candidates: int) -> NDArray[np.float32]:
    """For each row a value that at least `num_candidates` of its values reach."""
    num_rows, size = rows.shape
    num_blocks = size // _BLOCK
    if num_blocks < num_candidates:
        return np.partition(rows, size - num_candidates, axis=1)[:, size - num_candidates]
    # What is left over behind the last whole block can only raise the number of values that reach it.
    maxima = rows[:, : num_blocks * _BLOCK].reshape(num_rows, num_blocks, _BLOCK).max(axis=2)
    return np.partition(maxima, num_blocks - num_candidates, axis=1)[:, num_blocks - num_candidates]
