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
    num_blocks = size // _BLOCK
    if num_blocks < num_candidates:
        thresholds = np.partition(rows, size - num_candidates, axis=1)[:, size - num_candidates]
        places, indices = _at_least(rows, thresholds)
    else:
        whole = rows[:, : num_blocks * _BLOCK].reshape(num_rows, num_blocks, _BLOCK)
        maxima = whole.max(axis=2)
        thresholds = np.partition(maxima, num_blocks - num_candidates, axis=1)[:, num_blocks - num_candidates]
        block_rows, blocks = _at_least(maxima, thresholds)
        found, offsets = _at_least(whole[block_rows, blocks], thresholds[block_rows])
        # What is left over behind the last whole block can only raise the number of values that reach it.
        rest_rows, rest = _at_least(rows[:, num_blocks * _BLOCK :], thresholds)
        places = np.concatenate([block_rows[found], rest_rows])
        indices = np.concatenate([blocks[found] * _BLOCK + offsets, rest + num_blocks * _BLOCK])
    values = rows[places, indices]
    order = np.lexsort((indices, -values, places))
    starts = np.searchsorted(places[order], np.arange(num_rows))
    chosen = order[starts[:, None] + np.arange(num_candidates)]
    return values[chosen], indices[chosen]


def _at_least(
    rows: NDArray[np.float32], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each value that reaches its row's threshold; a flat search is several times faster."""
    flat = np.flatnonzero(rows >= thresholds[:, None])
    return np.divmod(flat, max(1, rows.shape[1]))
