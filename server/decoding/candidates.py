"""The most probable tokens of many rows, without sorting vocabularies."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Candidates", "Predictions", "best_of_groups", "best_of_rows"]

_BLOCK = 64


class Predictions(NamedTuple):
    """The results of a step: how probable each row's next tokens are.

    Attributes:
        log_probabilities: (B, V); anything where nobody said that all are needed.
        best: (B, K) the largest of them, best first, equal ones in the order of their tokens.
        token_ids: (B, K) whose they are.
    """

    log_probabilities: NDArray[np.float32]
    best: NDArray[np.float32]
    token_ids: NDArray[np.int64]


class Candidates(NamedTuple):
    """The best of each group, one group after the other, best first.

    Attributes:
        totals: (N,) a value with its row's base.
        rows: (N,) where it stands.
        token_ids: (N,) and where in the row.
        starts: (G + 1,) where each group begins, and the end.
    """

    totals: NDArray[np.float64]
    rows: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    starts: NDArray[np.int64]


def best_of_groups(
    rows: NDArray[np.float32],
    bases: Sequence[float] | NDArray[np.float64],
    group_sizes: Sequence[int],
    num_best: int,
) -> Candidates:
    """The largest values of each group of consecutive rows, each value with its row's base added.

    Exact, as a sort would give it, in about two passes: of the maxima of blocks of 64, a group's k-th largest is at
    most its k-th largest value, so only blocks that reach it are looked at, all groups' at once.

    Args:
        rows: (R, V).
        bases: (R,), added in float64: the order of a long sum is right.
        group_sizes: rows of each group; R together.
        num_best: k; each group gets at least so many, or all it has.

    Returns:
        Equal ones in the order of their rows, then of their tokens.
    """
    num_rows, size = rows.shape
    base = np.asarray(bases, np.float64)[:, None]
    num_whole = size // _BLOCK
    maxima = np.empty((num_rows, -(-size // _BLOCK)), np.float64)
    maxima[:, :num_whole] = rows[:, : num_whole * _BLOCK].reshape(num_rows, num_whole, _BLOCK).max(axis=2)
    if num_whole * _BLOCK < size:
        maxima[:, num_whole] = rows[:, num_whole * _BLOCK :].max(axis=1)
    maxima += base
    groups = np.repeat(np.arange(len(group_sizes)), group_sizes)
    thresholds = _thresholds(maxima, groups, group_sizes, num_best)[groups, None]  # (R, 1)
    # A flat search is several times faster than one by rows and columns.
    block_rows, blocks = np.divmod(np.flatnonzero(maxima >= thresholds), maxima.shape[1])
    columns = blocks[:, None] * _BLOCK + np.arange(_BLOCK)
    totals = rows[block_rows[:, None], np.minimum(columns, size - 1)] + base[block_rows]
    reaches = totals >= thresholds[block_rows]
    if num_whole * _BLOCK < size:
        reaches &= columns < size
    found = np.flatnonzero(reaches)
    best_rows, token_ids, best = block_rows[found // _BLOCK], columns.ravel()[found], totals.ravel()[found]
    order = np.lexsort((token_ids, best_rows, -best, groups[best_rows]))
    starts = np.searchsorted(groups[best_rows[order]], np.arange(len(group_sizes) + 1))
    return Candidates(best[order], best_rows[order], token_ids[order], starts)


def best_of_rows(rows: NDArray[np.float32], num_best: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `num_best` largest values of each row (R, V) and where they stand, (R, num_best), best first."""
    if num_best == 1:
        token_ids = rows.argmax(axis=1)[:, None]
        return np.take_along_axis(rows, token_ids, axis=1), token_ids
    rows = np.where(np.isnan(rows), np.float32(-np.inf), rows)  # or a row would have fewer than are wanted
    best = best_of_groups(rows, np.zeros(len(rows)), [1] * len(rows), num_best)
    places = best.starts[:-1, None] + np.arange(num_best)
    return best.totals[places].astype(np.float32), best.token_ids[places]


def _thresholds(
    maxima: NDArray[np.float64], groups: NDArray[np.int64], group_sizes: Sequence[int], num_best: int
) -> NDArray[np.float64]:
    """(G,) the k-th largest of each group's maxima, or -inf where it has no more than k."""
    most = max(group_sizes)
    if most * len(group_sizes) == len(maxima):
        grouped = maxima.reshape(len(group_sizes), -1)
    else:
        padded = np.full((len(group_sizes), most, maxima.shape[1]), -np.inf)
        ends = np.cumsum(group_sizes)
        padded[groups, np.arange(len(maxima)) - (ends - group_sizes)[groups]] = maxima
        grouped = padded.reshape(len(group_sizes), -1)
    if grouped.shape[1] <= num_best:
        return np.full(len(group_sizes), -np.inf)
    kth = grouped.shape[1] - num_best
    return np.asarray(np.partition(grouped, kth, axis=1)[:, kth])
