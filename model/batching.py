"""Batches of examples: what is in each, in which order, and as tensors."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragoman.model.bucketing import bucket_by_length, by_length, fill
from dragoman.model.shards import MIXED_SHARDS, Shard, Shards
from dragoman.model.tokenizer import BEGIN_ID, END_ID, PADDING_ID

__all__ = [
    "Batch",
    "BatchSource",
    "Examples",
    "Pairs",
    "Rows",
    "ShardedPairs",
    "ShardedStream",
    "Stream",
    "bucket_by_length",
    "in_order",
    "pad_right",
]


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


class ShardedPairs:
    """Sources and targets for translation. The longer side of a pair counts against a batch's budget.

    In a shard, source and target take turns. With `num_editions`, its pairs stand in it so many times, all
    of them and then all of them again, each time cut into other tokens (BPE-dropout): a pass reads one
    edition of each pair, drawn anew. A row is the number of a source.
    """

    def __init__(self, shards: Shards, num_editions: int = 1) -> None:
        """Sources as the tokenizer encodes them; targets without special tokens."""
        self._shards, self._num_editions = shards, num_editions
        self._starts = shards.sequence_starts // 2
        assert not (np.diff(self._starts) % num_editions).any()

    def __len__(self) -> int:
        return int(self._starts[-1]) // self._num_editions

    def plan(self, batch_tokens: int, rng: np.random.Generator | None = None) -> Iterator[Rows]:
        """One pass over all: shuffled by `rng`, or shortest first; a few shards at a time."""
        for group in _groups(len(self._shards), rng):
            parts = [self._edition(number, rng) for number in group]
            rows, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            if rng is None:
                yield from (
                    rows[batch]
                    for batch in fill(by_length(np.arange(len(rows)), lengths), lengths, batch_tokens)
                )
            else:
                yield from (rows[batch] for batch in bucket_by_length(lengths, batch_tokens, rng))

    def batch(self, rows: Rows) -> Batch:
        """Rows padded to the longest of them."""
        sources, targets = [], []
        for shard, row in _locate(self._shards, self._starts, rows):
            sources.append(shard.sequence(2 * row))
            targets.append(shard.sequence(2 * row + 1))
        labels = pad_right(targets, room=1)
        inputs = torch.empty_like(labels)
        inputs[:, 0], inputs[:, 1:] = BEGIN_ID, labels[:, :-1]
        labels[torch.arange(len(targets)), torch.tensor(list(map(len, targets)))] = END_ID
        return Batch(source_ids=pad_right(sources), input_ids=inputs, label_ids=labels)

    def digest(self) -> str:
        """A hash of all examples."""
        return self._shards.digest()

    def _edition(self, number: int, rng: np.random.Generator | None) -> tuple[Rows, NDArray[np.int64]]:
        """One row of each pair of a shard, and the lengths (pairs, 2) of its source and labels."""
        lengths = self._shards.open(number).lengths().reshape(-1, 2)
        lengths[:, 1] += 1  # the end token
        num_pairs = len(lengths) // self._num_editions
        rows = np.arange(num_pairs)
        if rng is not None and self._num_editions > 1:
            rows += num_pairs * rng.integers(self._num_editions, size=num_pairs)
        return rows + self._starts[number], lengths[rows]


class Pairs(ShardedPairs):
    """Pairs in memory, in one shard."""

    def __init__(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], num_editions: int = 1
    ) -> None:
        """Sources as the tokenizer encodes them; targets without special tokens."""
        pairs = zip(sources, targets, strict=True)
        super().__init__(Shards.in_memory(itertools.chain.from_iterable(pairs)), num_editions)


class ShardedStream:
    """Documents for generation, one after the other with the end token between, cut into windows.

    Every window is read from the begin token on, so that a prompt, which starts with it too, may be any
    excerpt and not only the start of a document. A row is where a window starts; none goes over the end of a
    shard.
    """

    def __init__(self, shards: Shards, context_tokens: int, max_windows: int | None = None) -> None:
        """Documents, each with its end token. `max_windows` keeps so many windows, evenly spread."""
        self._shards, self._context, self._max_windows = shards, context_tokens, max_windows
        self._starts = shards.token_starts

    def __len__(self) -> int:
        num_windows = int((-(-np.diff(self._starts) // self._context)).sum())
        return num_windows if self._max_windows is None else min(num_windows, self._max_windows)

    def plan(self, batch_tokens: int, rng: np.random.Generator | None = None) -> Iterator[Rows]:
        """One pass: shuffled by `rng`, the cuts between windows elsewhere each time, or from the start."""
        num_rows = max(1, batch_tokens // self._context)
        if rng is None:
            shards = itertools.pairwise(self._starts)
            rows = np.concatenate([np.arange(start, end, self._context) for start, end in shards])
            rows = rows[np.linspace(0, len(rows) - 1, len(self)).astype(int)]
            yield from _slices(rows, num_rows)
            return
        for group in _groups(len(self._shards), rng):
            rows = rng.permutation(np.concatenate([self._windows(number, rng) for number in group]))
            yield from _slices(rows, num_rows)

    def batch(self, rows: Rows) -> Batch:
        """The windows that start at `rows`; one at the very end is padded."""
        labels = pad_right(
            [
                shard.tokens[start : start + self._context]
                for shard, start in _locate(self._shards, self._starts, rows)
            ]
        )
        inputs = torch.empty_like(labels)
        inputs[:, 0], inputs[:, 1:] = BEGIN_ID, labels[:, :-1]
        return Batch(None, inputs, labels)

    def digest(self) -> str:
        """A hash of all documents."""
        return self._shards.digest()

    def _windows(self, number: int, rng: np.random.Generator) -> Rows:
        """Where the windows of a shard start, the first one anywhere."""
        start, end = self._starts[number : number + 2]
        room = max(0, int(end - start) - self._context)
        return start + np.arange(rng.integers(min(self._context, room + 1)), room + 1, self._context)


class Stream(ShardedStream):
    """Documents in memory, in one shard."""

    def __init__(
        self, documents: Sequence[Sequence[int]], context_tokens: int, max_windows: int | None = None
    ) -> None:
        """Documents without special tokens. `max_windows` keeps so many windows, evenly spread."""
        shards = Shards.in_memory([*document, END_ID] for document in documents)
        super().__init__(shards, context_tokens, max_windows)


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


def pad_right(sequences: Sequence[Sequence[int] | NDArray[Any]], room: int = 0) -> Tensor:
    """Token ids (B, longest + room), the shorter rows filled with the padding token."""
    longest = max(map(len, sequences)) + room
    padded = np.full((len(sequences), longest), PADDING_ID, dtype=np.int64)
    for row, tokens in zip(padded, sequences, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(padded)


def _groups(num_shards: int, rng: np.random.Generator | None) -> Iterator[list[int]]:
    """The shards that are read together, `MIXED_SHARDS` at a time, in an order drawn from `rng`."""
    # A corpus of one shard draws nothing here, so that how it is shuffled does not depend on shards.
    order = range(num_shards) if rng is None or num_shards == 1 else rng.permutation(num_shards).tolist()
    for first in range(0, num_shards, MIXED_SHARDS):
        yield list(order[first : first + MIXED_SHARDS])


def _locate(shards: Shards, starts: NDArray[np.int64], rows: Rows) -> Iterator[tuple[Shard, int]]:
    """The shard that holds each row, and the row's place in it."""
    numbers = np.searchsorted(starts, rows, side="right") - 1
    for number, row in zip(numbers.tolist(), (rows - starts[numbers]).tolist(), strict=True):
        yield shards.open(number), row


def _slices(rows: Rows, num_rows: int) -> Iterator[Rows]:
    yield from (rows[first : first + num_rows] for first in range(0, len(rows), num_rows))
