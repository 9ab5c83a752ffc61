"""Batches by token budget with length bucketing: rows of like length share a batch, so little is padding."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.tokenizer import BEGIN_ID, END_ID, PADDING_ID

__all__ = [
    "Batch",
    "BatchSource",
    "Examples",
    "Pairs",
    "Rows",
    "Stream",
    "bucket_by_length",
    "in_order",
    "pad_right",
]

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

    def without_labels(self) -> "Batch":
        """The batch with nothing to predict."""
        return dataclasses.replace(self, label_ids=torch.full_like(self.label_ids, PADDING_ID))

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        source_ids = None if self.source_ids is None else self.source_ids.to(device, non_blocking=True)
        return Batch(
            source_ids,
            self.input_ids.to(device, non_blocking=True),
            self.label_ids.to(device, non_blocking=True),
        )


Rows = NDArray[np.int64]
"""Which examples share a batch."""


class Examples(Protocol):
    """Something to learn from, or to validate on, in batches of at most `batch_tokens` padded tokens.

    What is in a batch and making it are two things: a training that is resumed passes over the batches that lie
    behind it, and of several processes each makes its own part of a batch.
    """

    def plan(self, batch_tokens: int, rng: np.random.Generator | None = None) -> Iterator[Rows]:
        """The rows of each batch of one pass, in an order drawn from `rng`, or in a fixed one without it."""

    def batch(self, rows: Rows) -> Batch:
        """Rows, all from one batch of a plan, as tensors."""

    def digest(self) -> str:
        """A hash of all examples."""


class Pairs:
    """Sources and targets for translation. The longer side of a pair counts against a batch's budget."""

    def __init__(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], num_editions: int = 1
    ) -> None:
        """Sources as the tokenizer encodes them; targets without special tokens.

        With `num_editions`, pair n of N stands there so many times, at n, N + n, 2 N + n, ..., each time cut
        into other tokens (BPE-dropout): a pass reads one edition of each pair, drawn anew.
        """
        assert len(sources) == len(targets)
        assert len(sources) % num_editions == 0
        self._sources, self._targets, self._num_editions = sources, targets, num_editions
        self._lengths = np.array(
            [(len(source), len(target) + 1) for source, target in zip(sources, targets, strict=True)],
            dtype=np.int64,
        ).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._sources) // self._num_editions

    def plan(self, batch_tokens: int, rng: np.random.Generator | None = None) -> Iterator[Rows]:
        """One pass over all: shuffled by `rng`, or shortest first."""
        rows = np.arange(len(self))
        if rng is None:
            yield from _fill(_by_length(rows, self._lengths), self._lengths, batch_tokens)
            return
        if self._num_editions > 1:
            rows += len(self) * rng.integers(self._num_editions, size=len(self))
        yield from (rows[batch] for batch in bucket_by_length(self._lengths[rows], batch_tokens, rng))

    def digest(self) -> str:
        """A hash of all examples."""
        digest = hashlib.blake2b(self._lengths.tobytes(), digest_size=16)
        for tokens in itertools.chain(self._sources, self._targets):
            digest.update(np.array(tokens, dtype=np.int32).tobytes())
        return digest.hexdigest()

    def batch(self, rows: Rows) -> Batch:
        """Rows padded to the longest of them."""
        return Batch(
            source_ids=pad_right([self._sources[row] for row in rows]),
            input_ids=pad_right([[BEGIN_ID, *self._targets[row]] for row in rows]),
            label_ids=pad_right([[*self._targets[row], END_ID] for row in rows]),
        )


class Stream:
    """Documents for generation, one after the other with the end token between, cut into windows.

    Every window is read from the begin token on, so that a prompt, which starts with it too, may be any
    excerpt and not only the start of a document. A row is where a window starts.
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

    def plan(self, batch_tokens: int, rng: np.random.Generator | None = None) -> Iterator[Rows]:
        """One pass: shuffled by `rng`, the cuts between windows elsewhere each time, or from the start."""
        if rng is None:
            starts = np.arange(0, len(self._tokens), self._context)
            starts = starts[np.linspace(0, len(starts) - 1, len(self)).astype(int)]
        else:
            room = max(0, len(self._tokens) - self._context)
            starts = rng.permutation(
                np.arange(rng.integers(min(self._context, room + 1)), room + 1, self._context)
            )
        num_rows = max(1, batch_tokens // self._context)
        yield from (starts[first : first + num_rows] for first in range(0, len(starts), num_rows))

    def digest(self) -> str:
        """A hash of all documents."""
        return hashlib.blake2b(self._tokens.tobytes(), digest_size=16).hexdigest()

    def batch(self, rows: Rows) -> Batch:
        """The windows that start at `rows`; one at the very end is padded."""
        windows = [self._tokens[start : start + self._context] for start in rows]
        longest = max(map(len, windows))
        labels = np.full((len(windows), longest), PADDING_ID, dtype=np.int64)
        for row, window in zip(labels, windows, strict=True):
            row[: len(window)] = window
        inputs = np.concatenate([np.full((len(windows), 1), BEGIN_ID), labels[:, :-1]], axis=1)
        return Batch(None, torch.from_numpy(inputs), torch.from_numpy(labels))


class BatchSource:
    """Pass after pass over `examples`, each in an order that depends on the seed and its number alone."""

    def __init__(
        self, examples: Examples, batch_tokens: int, seed: int, epoch: int = 0, num_batches: int = 0
    ) -> None:
        """`epoch` passes, and `num_batches` batches of the next one, lie behind already."""
        self._examples, self._batch_tokens, self._seed = examples, batch_tokens, seed
        self.epoch, self.num_batches = epoch, num_batches
        self._plan: Iterator[Rows] = itertools.islice(self._pass(), num_batches, None)

    def next_rows(self) -> Rows:
        """The rows of the next batch."""
        while (rows := next(self._plan, None)) is None:
            self.epoch, self.num_batches = self.epoch + 1, 0
            self._plan = self._pass()
        self.num_batches += 1
        return rows

    def _pass(self) -> Iterator[Rows]:
        return iter(self._examples.plan(self._batch_tokens, np.random.default_rng([self._seed, self.epoch])))


def in_order(examples: Examples, batch_tokens: int) -> Iterator[Batch]:
    """One pass over all, the same each time."""
    yield from map(examples.batch, examples.plan(batch_tokens))


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
