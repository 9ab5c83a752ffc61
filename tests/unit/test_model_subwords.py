"""BPE-dropout: the tokenizer's own cut without dropout, others with it, the same text always."""

import pytest
from tokenizers import Tokenizer

from dragoman.model.recipe import TokenizerSettings
from dragoman.model.subwords import BpeDropout
from dragoman.model.tokenizer import UNKNOWN_ID, train_tokenizer

TEXTS = ["the lowest of the low", "newer and wider, the widest", "low lower lowest; new newer newest"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    settings = TokenizerSettings(kind="bpe", vocabulary_size=60, normalization="nfc", lowercase=True)
    return train_tokenizer(settings, TEXTS, "translation")


def test_without_dropout_it_is_the_tokenizer(tokenizer: Tokenizer) -> None:
    cut = BpeDropout(tokenizer, 0.0, seed=1)
    for text in [*TEXTS, "Lowest NEW wide.", "unseen wörds"]:
        assert cut.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_with_dropout_words_are_cut_in_many_ways_that_read_the_same(tokenizer: Tokenizer) -> None:
    cut = BpeDropout(tokenizer, 0.3, seed=1)
    ways = [cut.encode("the lowest newest widest") for _ in range(50)]
    assert len({tuple(way) for way in ways}) > 20
    assert {tokenizer.decode(way) for way in ways} == {"the lowest newest widest"}
    plain = len(tokenizer.encode("the lowest newest widest", add_special_tokens=False).ids)
    assert sum(map(len, ways)) / len(ways) > plain


def test_dropping_all_leaves_characters(tokenizer: Tokenizer) -> None:
    cut = BpeDropout(tokenizer, 1.0 - 1e-12, seed=1)
    assert len(cut.encode("lowest")) == len("▁lowest")
    assert cut.encode("lowß")[-1] == UNKNOWN_ID


def test_the_seed_decides(tokenizer: Tokenizer) -> None:
    first, again, other = (
        [BpeDropout(tokenizer, 0.3, seed).encode(text) for text in TEXTS] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
