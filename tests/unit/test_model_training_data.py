"""From text to shards: in chunks, within limits, made anew only when something has changed."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from dragoman.model.batching import Examples, Pairs, Stream
from dragoman.model.corpora.corpus import Corpus, Pair, TrainingFiles
from dragoman.model.errors import CorpusError
from dragoman.model.recipe import Recipe
from dragoman.model.run import RECORD_FILE
from dragoman.model.subwords import BpeDropout
from dragoman.model.tokenizer import END_ID, train_tokenizer
from dragoman.model.training.data import encode_corpus
from dragoman.model.training.encoding import encode_documents, encode_pairs

PAIRS = [Pair(f"the number {n} and {n * n}", f"die Zahl {n} und {n * n}") for n in range(300)]
LONG = Pair("number " * 30, "Zahl")


def recipe(task: str = "translation", **tokenizer: object) -> Recipe:
    encoder = {"num_encoder_layers": 1, "max_source_tokens": 20} if task == "translation" else {}
    return Recipe.load(
        {
            "name": "mine",
            "task": task,
            "corpus": {"kind": "jsonl", "train": "-"},
            "tokenizer": {"kind": "bpe", "vocabulary_size": 120, **tokenizer},
            "model": {
                "width": 32,
                "num_heads": 2,
                "num_decoder_layers": 1,
                "max_target_tokens": 20,
                **encoder,
            },
            "training": {"max_steps": 1},
        },
        source="test",
    )


def pair_corpus() -> Corpus[Pair]:
    return Corpus("mine", [*PAIRS[10:], LONG], PAIRS[:10], [])


def document_corpus() -> Corpus[str]:
    return Corpus("mine", [pair.source for pair in PAIRS[10:]], [pair.source for pair in PAIRS[:10]], [])


def tokenizer_of(corpus: Corpus[Pair] | Corpus[str], by: Recipe) -> Tokenizer:
    return train_tokenizer(by.tokenizer, corpus.texts(), by.task)


def tokens(examples: Examples, seed: int) -> list[tuple[list[list[int]] | None, list[list[int]]]]:
    batches = [examples.batch(rows) for rows in examples.plan(500, np.random.default_rng(seed))]
    return [
        (None if batch.source_ids is None else batch.source_ids.tolist(), batch.label_ids.tolist())
        for batch in batches
    ]


def num_shards(folder: Path) -> int:
    return len(json.loads((folder / "index.json").read_text())["shards"])


def test_pairs_in_one_shard_are_those_in_memory(tmp_path: Path) -> None:
    corpus, by = pair_corpus(), recipe()
    tokenizer = tokenizer_of(corpus, by)
    encoded = [sides for _, sides in encode_pairs(PAIRS[10:], tokenizer, by)]
    in_memory = Pairs([source for source, _ in encoded], [target for _, target in encoded])
    sharded = encode_corpus(corpus, tokenizer, by, tmp_path)
    assert tokens(sharded.train, 3) == tokens(in_memory, 3)
    assert (len(encoded), sharded.num_too_long) == (290, 1)
    assert num_shards(tmp_path) == 1


@pytest.mark.parametrize("shard_tokens", [1 << 20, 2_000])
def test_random_cuts_stand_in_the_shard_of_their_pair(tmp_path: Path, shard_tokens: int) -> None:
    corpus, by = pair_corpus(), recipe(dropout=0.2, num_editions=3)
    tokenizer = tokenizer_of(corpus, by)
    encoded = encode_corpus(corpus, tokenizer, by, tmp_path, shard_tokens)
    plain = encode_pairs(PAIRS[10:], tokenizer, by)
    assert encoded.size == f"{len(plain)} pairs"
    assert (num_shards(tmp_path) > 1) is (shard_tokens == 2_000)
    decoded = [
        tokenizer.decode(source) for sources, _ in tokens(encoded.train, 1) for source in sources or []
    ]
    assert sorted(decoded) == sorted(pair.source for pair, _ in plain)
    if shard_tokens > 2_000:
        cut = BpeDropout(tokenizer, 0.2, by.seed)
        editions = []
        for pair, sides in plain * 3:
            source, target = [*cut.encode(pair.source), END_ID], cut.encode(pair.target)
            editions.append((source, target) if len(source) <= 20 and len(target) <= 20 else sides)
        in_memory = Pairs([source for source, _ in editions], [target for _, target in editions], 3)
        assert tokens(encoded.train, 3) == tokens(in_memory, 3)


@pytest.mark.parametrize("shard_tokens", [1 << 20, 500])
def test_documents(tmp_path: Path, shard_tokens: int) -> None:
    corpus, by = document_corpus(), recipe("generation")
    tokenizer = tokenizer_of(corpus, by)
    encoded = encode_corpus(corpus, tokenizer, by, tmp_path, shard_tokens)
    documents = encode_documents(list(corpus.train), tokenizer)
    assert encoded.size == f"{sum(map(len, documents)):,} tokens"
    if shard_tokens == 500:
        assert num_shards(tmp_path) > 3
    else:
        assert tokens(encoded.train, 3) == tokens(Stream(documents, 20), 3)


def test_shards_are_used_again_until_something_changes(tmp_path: Path) -> None:
    corpus, by = pair_corpus(), recipe()
    tokenizer = tokenizer_of(corpus, by)
    first = encode_corpus(corpus, tokenizer, by, tmp_path)

    def never() -> None:
        raise AssertionError("the corpus was read again")

    unread = Corpus("mine", TrainingFiles(never, 291, 1), PAIRS[:10], [])  # type: ignore[arg-type]
    again = encode_corpus(unread, tokenizer, by, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert (again.size, again.num_too_long) == (first.size, first.num_too_long)
    with pytest.raises(AssertionError, match="was read again"):
        encode_corpus(unread, tokenizer, by.model_copy(update={"seed": 2}), tmp_path)


def test_a_corpus_of_which_nothing_fits_is_named(tmp_path: Path) -> None:
    long = [Pair("a " * 50, "b " * 50)] * 5
    by = recipe()
    corpus = Corpus("mine", long, PAIRS[:5], [])
    with pytest.raises(CorpusError, match="every pair of its train split is longer"):
        encode_corpus(corpus, tokenizer_of(corpus, by), by, tmp_path)


def test_the_tokenizer_sees_so_much_text_evenly_spread() -> None:
    corpus = Corpus("mine", PAIRS, PAIRS[:1], [])
    total = sum(len(pair.source) + len(pair.target) for pair in PAIRS)
    assert list(corpus.texts()) == list(corpus.texts(total)) == [side for pair in PAIRS for side in pair]
    some = list(corpus.texts(total // 10))
    assert total // 10 - 100 < sum(map(len, some)) <= total // 10
    places = [[pair.source for pair in PAIRS].index(source) for source in some[::2]]
    assert all(5 < b - a < 16 for a, b in itertools.pairwise(places))
    assert {*map(tuple, zip(some[::2], some[1::2], strict=True))} <= {*map(tuple, PAIRS)}, "pairs are whole"
    single = Corpus("mine", ["x" * 1_000], ["y"], [])
    assert list(single.texts(300)) == ["x" * 300]
    counted = Corpus("mine", TrainingFiles(lambda: iter(PAIRS), len(PAIRS), total), PAIRS[:1], [])
    assert list(counted.texts(total // 10)) == some


@pytest.mark.parametrize(("content", "code"), [(True, 0), (False, 2)])
def test_a_corpus_through_standard_input(tmp_path: Path, content: bool, code: int) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\ntask = "translation"\n[corpus]\nkind = "tsv"\ntrain = "-"\n'
        '[tokenizer]\nkind = "character"\n[model]\nwidth = 16\nnum_heads = 2\nnum_encoder_layers = 1\n'
        "num_decoder_layers = 1\nmax_source_tokens = 64\nmax_target_tokens = 64\n[training]\nmax_steps = 2\n"
    )
    (tmp_path / "temporary").mkdir()
    lines = "".join(f"{pair.source}\t{pair.target}\n" for pair in PAIRS).encode() + b"\xff\n"
    done = subprocess.run(
        [sys.executable, "-m", "dragoman", "train", str(path), "--out", str(tmp_path / "run")],
        input=lines if content else b"\n\n",
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    said = done.stderr.decode()
    assert done.returncode == code, said
    if content:
        assert "left out 1 of 301 pairs: 1 not UTF-8 (first: standard input, line 301: byte 0xff)" in said
        assert (tmp_path / "run" / RECORD_FILE).is_file()
    else:
        assert said.splitlines()[-1].startswith("error: corpus 'mine' is empty: of 2 pairs in -")
    assert list((tmp_path / "temporary").glob("dragoman*")) == []
