"""Length bucketing: rows of like length share a batch, so little is padding."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["bucket_by_length", "by_length", "fill"]

_BUCKETED_BATCHES = 100  # sorting a chunk of so many batches at a time leaves them well mixed


def bucket_by_length(
    lengths: NDArray[np.int64], batch_tokens: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Rows for each batch: shuffle, sort within big chunks, fill batches to the budget, shuffle the batches.

    `lengths` is (N, sides). The longest side of a batch's longest row, times its rows, stays within
    `batch_tokens`; a row that is longer than that has a batch of its own.
    """
    order = rng.permutation(len(lengths))
    mean = max(1.0, float(lengths.max(axis=1).mean()))
    chunk = max(1, int(_BUCKETED_BATCHES * batch_tokens / mean))
    batches = [
        batch
        for start in range(0, len(order), chunk)
        for batch in fill(by_length(order[start : start + chunk], lengths), lengths, batch_tokens)
    ]
    return [batches[index] for index in rng.permutation(len(batches))]


def by_length(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`rows` by their first side, then the second; a stable sort, so ties stay in the order drawn."""
    return rows[np.lexsort(lengths[rows].T[::-1])]


def fill(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], batch_tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Cut `rows`, as they come, into batches that stay within `batch_tokens`."""
    start, longest = 0, 0
    for end, length in enumerate(lengths[rows].max(axis=1).tolist()):
        longest = max(longest, length)
        if end > start and (end + 1 - start) * longest > batch_tokens:
            yield rows[start:end]
            start, longest = end, length
    if start < len(rows):
        yield rows[start:]
