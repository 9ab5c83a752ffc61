"""Shards: the same batches as in memory, each row once, few files open, and nothing torn is believed."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.trees import tree

from dragoman.common.errors import OperationError
from dragoman.model.batching import Examples, Pairs, ShardedPairs, ShardedStream, Stream
from dragoman.model.shards import MIXED_SHARDS, Shards, ShardWriter, remove_shards
from dragoman.model.tokenizer import END_ID, PADDING_ID

Sequences = list[list[int]]


def some_pairs(count: int) -> tuple[Sequences, Sequences]:
    """Pairs that can be told apart: each source begins with its number."""
    lengths = np.random.default_rng(5).integers(1, 30, count).tolist()
    sources = [[*([1_000 + n] * length), END_ID] for n, length in enumerate(lengths)]
    return sources, [[10 + n % 7] * (length // 2 + 1) for n, length in enumerate(lengths)]


def taking_turns(sources: Sequences, targets: Sequences) -> Sequences:
    return list(itertools.chain.from_iterable(zip(sources, targets, strict=True)))


def on_disk(folder: Path, groups: Sequence[Sequences]) -> Shards:
    """A shard for each group."""
    writer = ShardWriter(folder, vocabulary_size=5_000, shard_tokens=1)
    for group in groups:
        writer.add(group)
    writer.finish("these tests", num_too_long=3)
    shards = Shards.on_disk(folder, "these tests")
    assert shards is not None
    assert len(shards) == len(groups)
    return shards


def cut_up(sequences: Sequences, num_groups: int) -> list[Sequences]:
    ends = [2 * (len(sequences) // 2 * n // num_groups) for n in range(num_groups + 1)]
    return [sequences[start:end] for start, end in itertools.pairwise(ends)]


def passes(examples: Examples, seed: int | None) -> list[tuple[list[list[int]], ...]]:
    rng = None if seed is None else np.random.default_rng(seed)
    batches = [examples.batch(rows) for rows in examples.plan(300, rng)]
    return [
        tuple(
            tensor.tolist()
            for tensor in (batch.source_ids, batch.input_ids, batch.label_ids)
            if tensor is not None
        )
        for batch in batches
    ]


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("num_editions", [1, 3])
def test_one_shard_gives_the_batches_of_pairs_in_memory(
    tmp_path: Path, seed: int | None, num_editions: int
) -> None:
    sources, targets = some_pairs(90)
    sharded = ShardedPairs(on_disk(tmp_path, [taking_turns(sources, targets)]), num_editions)
    in_memory = Pairs(sources, targets, num_editions)
    assert passes(sharded, seed) == passes(in_memory, seed)
    assert len(sharded) == len(in_memory) == 90 // num_editions
    assert sharded.digest() == in_memory.digest()


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_one_shard_gives_the_batches_of_a_stream_in_memory(tmp_path: Path, seed: int | None) -> None:
    documents, _ = some_pairs(60)
    shards = on_disk(tmp_path, [[[*document, END_ID] for document in documents]])
    for max_windows in (None, 5):
        sharded, in_memory = ShardedStream(shards, 16, max_windows), Stream(documents, 16, max_windows)
        assert passes(sharded, seed) == passes(in_memory, seed)
        assert len(sharded) == len(in_memory)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("num_editions", [1, 2])
def test_several_shards_give_every_pair_once_a_pass(
    tmp_path: Path, seed: int | None, num_editions: int
) -> None:
    sources, targets = some_pairs(200)
    groups = cut_up(taking_turns(sources, targets), 10)  # of 20 pairs
    pairs = ShardedPairs(on_disk(tmp_path, [group * num_editions for group in groups]), num_editions)
    found = [
        (tuple(t for t in source if t != PADDING_ID), tuple(t for t in label if t != PADDING_ID))
        for sources_, _, labels in passes(pairs, seed)
        for source, label in zip(sources_, labels, strict=True)
    ]
    expected = [(tuple(s), (*t, END_ID)) for s, t in zip(sources, targets, strict=True)]
    assert len(pairs) == 200
    assert sorted(found) == sorted(expected)


def test_editions_of_all_shards_are_drawn(tmp_path: Path) -> None:
    def shard(first: int) -> Sequences:
        """Two pairs, whose sources begin with `first` and the next; in the second edition a hundred more."""
        return [side for token in (0, 1, 100, 101) for side in ([first + token, END_ID], [END_ID])]

    pairs = ShardedPairs(on_disk(tmp_path, [shard(1_000), shard(2_000)]), 2)
    rng = np.random.default_rng(0)
    drawn = set()
    for _ in range(40):
        [batch] = [pairs.batch(rows) for rows in pairs.plan(1_000, rng)]
        assert batch.source_ids is not None
        tokens = batch.source_ids[:, 0].tolist()
        assert sorted(token // 1_000 * 1_000 + token % 100 for token in tokens) == [
            1_000,
            1_001,
            2_000,
            2_001,
        ]
        drawn |= {*tokens}
    assert drawn == {first + token for first in (1_000, 2_000) for token in (0, 1, 100, 101)}


def test_shards_are_mixed_in_another_order_each_pass(tmp_path: Path) -> None:
    sources, targets = some_pairs(240)
    pairs = ShardedPairs(on_disk(tmp_path, cut_up(taking_turns(sources, targets), 12)))
    orders = []
    for seed in (1, 2):
        rows = np.concatenate(list(pairs.plan(100, np.random.default_rng(seed))))
        orders.append(list(dict.fromkeys((rows // 20).tolist())))
        first_group = set((rows[: 20 * MIXED_SHARDS] // 20).tolist())
        assert len(first_group) == MIXED_SHARDS
        assert (rows[: 20 * MIXED_SHARDS] // 20).tolist() != sorted(
            (rows[: 20 * MIXED_SHARDS] // 20).tolist()
        )
    assert orders[0] != orders[1]


@pytest.mark.parametrize("seed", [None, 3])
def test_windows_of_several_shards_give_each_token_at_most_once(tmp_path: Path, seed: int | None) -> None:
    groups = [[[*range(first, first + 95), END_ID]] for first in range(1_000, 2_000, 100)]
    stream = ShardedStream(on_disk(tmp_path, groups), 16)
    found = [
        t
        for _, labels in passes(stream, seed)
        for row in labels
        for t in row
        if t not in (PADDING_ID, END_ID)
    ]
    everything = [t for group in groups for t in group[0][:-1]]
    assert len(found) == len(set(found))
    assert set(found) <= set(everything)
    assert len(found) >= len(everything) - (10 * 2 * 16 if seed else 0)
    assert len(stream) == 10 * 6


def test_few_shards_are_open_at_a_time_and_none_is_loaded(tmp_path: Path) -> None:
    sources, targets = some_pairs(240)
    shards = on_disk(tmp_path, cut_up(taking_turns(sources, targets), 12))
    pairs = ShardedPairs(shards)
    for rows in pairs.plan(100, np.random.default_rng(0)):
        pairs.batch(rows)
        assert shards.open.cache_info().currsize <= MIXED_SHARDS
    assert shards.open.cache_info().misses == 12, "each was opened once"
    assert all(isinstance(array.base, np.memmap) for array in shards.open(5))
    assert shards.open(5).tokens.dtype == np.uint16


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, vocabulary_size=(1 << 16) + 1)
    writer.add([[1 << 16, END_ID], [7]])
    writer.finish("x", 0)
    shards = Shards.on_disk(tmp_path, "x")
    assert shards is not None
    batch = ShardedPairs(shards).batch(np.array([0]))
    assert batch.source_ids is not None
    torch.testing.assert_close(batch.source_ids, torch.tensor([[1 << 16, END_ID]]))


def damage_nothing(folder: Path) -> None:
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("damage", "is_whole"),
    [
        (damage_nothing, True),
        (lambda folder: (folder / "index.json").unlink(), False),
        (
            lambda folder: (folder / "index.json").write_bytes((folder / "index.json").read_bytes()[:-20]),
            False,
        ),
        (lambda folder: (folder / "00001.tokens.npy").unlink(), False),
        (lambda folder: (folder / "00001.offsets.npy").write_bytes(b"short"), False),
        (lambda folder: (folder / "index.json").write_text('{"schema_version": 2}'), False),
    ],
)
def test_a_torn_folder_is_not_believed(
    tmp_path: Path, damage: Callable[[Path], object], is_whole: bool
) -> None:
    folder = tmp_path / "corpus"
    on_disk(folder, cut_up(taking_turns(*some_pairs(60)), 3))
    assert Shards.on_disk(folder, "something else") is None
    damage(folder)
    shards = Shards.on_disk(folder, "these tests")
    assert (shards is not None) is is_whole
    assert on_disk(folder, cut_up(taking_turns(*some_pairs(60)), 2)).num_too_long == 3
    assert len(list(folder.iterdir())) == 5, "what was there is gone"


def test_the_digest_tells_contents_apart(tmp_path: Path) -> None:
    groups = [[[7, END_ID], [8]], [[9, END_ID], [8]]]
    digests = {
        on_disk(tmp_path / str(n), contents).digest()
        for n, contents in enumerate([groups, groups[::-1], [[[7, END_ID, 8], []], groups[1]], groups])
    }
    assert len(digests) == 3


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = ShardWriter(tmp_path / "file" / "corpus", 10)
    writer.add([[4], [5]])
    with pytest.raises(OperationError, match=r"cannot write .*corpus"):
        writer.finish("x", 0)


def test_only_shards_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    writer = ShardWriter(folder, vocabulary_size=10, shard_tokens=1)
    for _ in range(2):
        writer.add([[5, 6], [7]])
    writer.finish("this", 0)
    (folder / ".00002.tokens.npy.k1ll3d").touch()
    (folder / "train.tsv").write_text("years of work")
    ShardWriter(folder, vocabulary_size=10)
    assert tree(folder) == {"train.tsv": b"years of work"}
    (folder / "train.tsv").unlink()
    remove_shards(folder)
    remove_shards(folder)
    assert tree(tmp_path) == {}
