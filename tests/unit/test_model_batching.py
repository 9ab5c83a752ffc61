"""Batches: everything once, within the budget, little padding, repeatable."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dragoman.model.batching import (
    Batch,
    BatchSource,
    Examples,
    Pairs,
    Stream,
    bucket_by_length,
    in_order,
    pad_right,
)
from dragoman.model.tokenizer import BEGIN_ID, END_ID, PADDING_ID


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def some_pairs(count: int, seed: int = 0) -> Pairs:
    """Sources that end with the end token, targets half as long."""
    lengths = rng(seed).integers(1, 40, count)
    return Pairs(
        [[*([4 + i % 90] * length), END_ID] for i, length in enumerate(lengths)],
        [[5] * (int(length) // 2 + 1) for length in lengths],
    )


def shuffled(examples: Examples, batch_tokens: int, order: np.random.Generator) -> Iterator[Batch]:
    return map(examples.batch, examples.plan(batch_tokens, order))


def texts(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """What the rows hold, without padding."""
    assert batch.source_ids is not None
    return [
        ([t for t in source if t != PADDING_ID], [t for t in label if t != PADDING_ID])
        for source, label in zip(batch.source_ids.tolist(), batch.label_ids.tolist(), strict=True)
    ]


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=300), st.integers(1, 200)
)
def test_every_row_is_in_one_batch_within_the_budget(lengths: list[tuple[int, int]], budget: int) -> None:
    batches = bucket_by_length(np.array(lengths), budget, rng())
    assert sorted(itertools.chain.from_iterable(batch.tolist() for batch in batches)) == list(
        range(len(lengths))
    )
    for batch in batches:
        cells = len(batch) * max(max(lengths[row]) for row in batch)
        assert cells <= budget or len(batch) == 1


def test_bucketing_leaves_little_padding() -> None:
    batches = list(shuffled(some_pairs(5_000), 1_024, rng()))
    padding = 1 - sum(b.num_tokens for b in batches) / sum(b.num_cells for b in batches)
    assert padding < 0.05
    order = [b.label_ids.shape[1] for b in batches]
    assert order != sorted(order), "batches come in no order of length"


def test_a_batch_shifts_the_target_by_one() -> None:
    [batch] = in_order(Pairs([[7, 8, END_ID], [9, END_ID]], [[4, 5], [6]]), 100)
    assert texts(batch) == [([9, END_ID], [6, END_ID]), ([7, 8, END_ID], [4, 5, END_ID])]
    assert batch.input_ids.tolist() == [[BEGIN_ID, 6, PADDING_ID], [BEGIN_ID, 4, 5]]
    assert batch.label_ids.tolist() == [[6, END_ID, PADDING_ID], [4, 5, END_ID]]
    assert (batch.num_labels, batch.num_tokens, batch.num_cells) == (5, 10, 12)


def test_a_pass_holds_every_pair_once_in_an_order_of_its_own() -> None:
    pairs = some_pairs(500)
    passes = [[row for batch in shuffled(pairs, 256, rng(seed)) for row in texts(batch)] for seed in (1, 2)]
    ordered = [row for batch in in_order(pairs, 256) for row in texts(batch)]
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(ordered)


def test_the_same_seed_gives_the_same_batches_over_several_passes() -> None:
    def first_batches(seed: int) -> list[list[list[int]]]:
        pairs = some_pairs(60)
        source = BatchSource(pairs, 256, seed)
        return [pairs.batch(source.next_rows()).label_ids.tolist() for _ in range(20)]

    assert first_batches(3) == first_batches(3)
    assert first_batches(3) != first_batches(4)


def test_a_stream_in_order_predicts_each_token_once() -> None:
    documents = [[10, 11, 12], [13], [14, 15, 16, 17, 18]]
    batches = list(in_order(Stream(documents, context_tokens=4), 8))
    labels = [t for b in batches for t in b.label_ids.flatten().tolist() if t != PADDING_ID]
    assert labels == [10, 11, 12, END_ID, 13, END_ID, 14, 15, 16, 17, 18, END_ID]
    for batch in batches:
        assert batch.source_ids is None
        assert batch.label_ids.shape[0] <= 2
        assert batch.input_ids[:, 0].eq(BEGIN_ID).all()
        torch.testing.assert_close(batch.input_ids[:, 1:], batch.label_ids[:, :-1])


def test_a_stream_is_cut_elsewhere_in_each_pass() -> None:
    stream = Stream([list(range(10, 500))], context_tokens=16)
    starts = [
        sorted(first for batch in shuffled(stream, 64, rng(seed)) for first in batch.label_ids[:, 0].tolist())
        for seed in (1, 2)
    ]
    assert starts[0] != starts[1]
    assert all(b - a == 16 for a, b in itertools.pairwise(starts[0]))
    assert all(batch.label_ids.shape[1] == 16 for batch in shuffled(stream, 64, rng(1)))


def test_a_text_shorter_than_the_context_is_one_padded_window() -> None:
    stream = Stream([[10, 11]], context_tokens=8)
    for batches in (in_order(stream, 64), shuffled(stream, 64, rng())):
        [batch] = batches
        assert batch.label_ids.tolist() == [[10, 11, END_ID]]


def test_max_windows_are_spread_over_the_text() -> None:
    stream = Stream([list(range(10, 109))], context_tokens=10, max_windows=3)  # 10 windows with the end token
    assert len(stream) == 3
    assert [batch.label_ids[0, 0].item() for batch in in_order(stream, 10)] == [10, 50, 100]


@pytest.mark.parametrize("rows", [[[1, 2, 3], [4]], [[7]]])
def test_padding_stands_to_the_right(rows: list[list[int]]) -> None:
    padded = pad_right(rows)
    assert padded.shape == (len(rows), max(map(len, rows)))
    for row, tokens in zip(padded.tolist(), rows, strict=True):
        assert row[: len(tokens)] == tokens
        assert not any(row[len(tokens) :])
