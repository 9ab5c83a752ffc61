"""Batches by token budget with length bucketing: rows of like length share a batch, so little is padding."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.tokenizer import BEGIN_ID, END_ID, PADDING_ID

__all__ = ["Batch", "Examples", "Pairs", "Stream", "bucket_by_length", "endless", "pad_right"]

_BUCKETED_BATCHES = 100  # sorting a chunk of so many batches at a time leaves them well mixed


@dataclasses.dataclass(frozen=True)
class Batch:
    """One forward pass, padded to the right."""

    source_ids: Tensor | None  # (B, S); none for generation
    input_ids: Tensor  # (B, T): what the decoder reads
    label_ids: Tensor  # (B, T): what it is to predict; padding where nothing is

    @property
    def num_labels(self) -> int:
        """Tokens to predict."""
        return int(torch.count_nonzero(self.label_ids != PADDING_ID))

    @property
    def num_tokens(self) -> int:
        """Tokens read and predicted, without padding."""
        source = 0 if self.source_ids is None else int(torch.count_nonzero(self.source_ids != PADDING_ID))
        return source + self.num_labels

    @property
    def num_cells(self) -> int:
        """Tokens with padding: what is computed."""
        return self.label_ids.numel() + (0 if self.source_ids is None else self.source_ids.numel())

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        source_ids = None if self.source_ids is None else self.source_ids.to(device, non_blocking=True)
        return Batch(
            source_ids,
            self.input_ids.to(device, non_blocking=True),
            self.label_ids.to(device, non_blocking=True),
        )


class Examples(Protocol):
    """Something to learn from, or to validate on, in batches of at most `batch_tokens` padded tokens."""

    def shuffled(self, batch_tokens: int, rng: np.random.Generator) -> Iterator[Batch]:
        """One pass over all in an order drawn from `rng`."""

    def in_order(self, batch_tokens: int) -> Iterator[Batch]:
        """One pass over all, the same each time."""


class Pairs:
    """Sources and targets for translation. The longer side of a pair counts against a batch's budget."""

    def __init__(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        """Sources as the tokenizer encodes them; targets without special tokens."""
        self._sources, self._targets = sources, targets
        self._lengths = np.array(
            [(len(source), len(target) + 1) for source, target in zip(sources, targets, strict=True)],
            dtype=np.int64,
        ).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._sources)

    def shuffled(self, batch_tokens: int, rng: np.random.Generator) -> Iterator[Batch]:
        """One pass over all in an order drawn from `rng`."""
        yield from map(self._batch, bucket_by_length(self._lengths, batch_tokens, rng))

    def in_order(self, batch_tokens: int) -> Iterator[Batch]:
        """One pass over all, shortest first."""
        yield from map(
            self._batch, _fill(_by_length(np.arange(len(self)), self._lengths), self._lengths, batch_tokens)
        )

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        return Batch(
            source_ids=pad_right([self._sources[row] for row in rows]),
            input_ids=pad_right([[BEGIN_ID, *self._targets[row]] for row in rows]),
            label_ids=pad_right([[*self._targets[row], END_ID] for row in rows]),
        )


class Stream:
    """Documents for generation, one after the other with the end token between, cut into windows.

    Every window is read from the begin token on, so that a prompt, which starts with it too, may be any
    excerpt and not only the start of a document.
    """

    def __init__(
        self, documents: Sequence[Sequence[int]], context_tokens: int, max_windows: int | None = None
    ) -> None:
        """Documents without special tokens. `max_windows` keeps so many windows, evenly spread."""
        joined = itertools.chain.from_iterable((*document, END_ID) for document in documents)
        self._tokens = np.fromiter(joined, dtype=np.int64)
        self._context = context_tokens
        self._max_windows = max_windows

    def __len__(self) -> int:
        num_windows = -(-len(self._tokens) // self._context)
        return num_windows if self._max_windows is None else min(num_windows, self._max_windows)

    def shuffled(self, batch_tokens: int, rng: np.random.Generator) -> Iterator[Batch]:
        """One pass in an order drawn from `rng`; the cuts between windows are elsewhere each time."""
        room = max(0, len(self._tokens) - self._context)
        starts = np.arange(rng.integers(min(self._context, room + 1)), room + 1, self._context)
        yield from self._batches(rng.permutation(starts), batch_tokens)

    def in_order(self, batch_tokens: int) -> Iterator[Batch]:
        """One pass from the start; the last window is padded."""
        starts = np.arange(0, len(self._tokens), self._context)
        yield from self._batches(starts[np.linspace(0, len(starts) - 1, len(self)).astype(int)], batch_tokens)

    def _batches(self, starts: NDArray[np.int64], batch_tokens: int) -> Iterator[Batch]:
        num_rows = max(1, batch_tokens // self._context)
        for first in range(0, len(starts), num_rows):
            windows = [
                self._tokens[start : start + self._context] for start in starts[first : first + num_rows]
            ]
            longest = max(map(len, windows))
            labels = np.full((len(windows), longest), PADDING_ID, dtype=np.int64)
            for row, window in zip(labels, windows, strict=True):
                row[: len(window)] = window
            inputs = np.concatenate([np.full((len(windows), 1), BEGIN_ID), labels[:, :-1]], axis=1)
            yield Batch(None, torch.from_numpy(inputs), torch.from_numpy(labels))


def endless(examples: Examples, batch_tokens: int, seed: int) -> Iterator[Batch]:
    """Pass after pass, each in an order that depends on `seed` and its number alone."""
    for epoch in itertools.count():
        yield from examples.shuffled(batch_tokens, np.random.default_rng([seed, epoch]))


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
        for batch in _fill(_by_length(order[start : start + chunk], lengths), lengths, batch_tokens)
    ]
    return [batches[index] for index in rng.permutation(len(batches))]


def pad_right(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token ids (B, longest), the shorter rows filled with the padding token."""
    longest = max(map(len, sequences))
    return torch.tensor([[*tokens, *[PADDING_ID] * (longest - len(tokens))] for tokens in sequences])


def _by_length(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`rows` by their first side, then the second; a stable sort, so ties stay in the order drawn."""
    return rows[np.lexsort(lengths[rows].T[::-1])]


def _fill(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], batch_tokens: int
) -> Iterator[NDArray[np.int64]]:
    start, longest = 0, 0
    for end, length in enumerate(lengths[rows].max(axis=1).tolist()):
        longest = max(longest, length)
        if end > start and (end + 1 - start) * longest > batch_tokens:
            yield rows[start:end]
            start, longest = end, length
    if start < len(rows):
        yield rows[start:]
