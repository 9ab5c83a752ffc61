import functools
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from dragoman.common.text import clean_text, is_blank
from dragoman.model.errors import CorpusError, RunError
from dragoman.model.recipe import TokenizerSettings
from dragoman.model.tokenizer import (
    BEGIN_ID,
    END_ID,
    PADDING_ID,
    SPECIAL_TOKENS,
    UNKNOWN_ID,
    load_tokenizer,
    train_tokenizer,
)

Kind = Literal["bpe", "byte_bpe", "character"]
KINDS: tuple[Kind, ...] = ("bpe", "byte_bpe", "character")
TEXTS = (
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Größe und Maß: 3,5 m² – „schön“!",
    "def f(x):\n    return x  # ok\n\tend\r\n",
    "日本語の文章。 Ελληνικά, русский",
    "a </s> in text is <s>text</s> <pad><unk>",
    "\U0001f600 e\u0301 \u2028",
)
ALPHABET = sorted(set("".join(TEXTS)))


@functools.cache
def tokenizer_of(kind: Kind, task: Literal["translation", "generation"] = "translation") -> Tokenizer:
    settings = TokenizerSettings(kind=kind, vocabulary_size=500, normalization="none")
    return train_tokenizer(settings, TEXTS, task)


def streamed(tokenizer: Tokenizer, ids: list[int], prompt: list[int]) -> str:
    stream = DecodeStream(ids=prompt, skip_special_tokens=True)
    return "".join(piece for i in ids if (piece := stream.step(tokenizer, i)) is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_the_fixed_ids(kind: Kind) -> None:
    tokenizer = tokenizer_of(kind)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert (PADDING_ID, UNKNOWN_ID, BEGIN_ID, END_ID) == (0, 1, 2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_gives_the_models_input(kind: Kind) -> None:
    bare = tokenizer_of(kind).encode("the dog", add_special_tokens=False).ids
    assert not set(bare) & {PADDING_ID, UNKNOWN_ID, BEGIN_ID, END_ID}
    assert tokenizer_of(kind).encode("the dog").ids == [*bare, END_ID]
    assert tokenizer_of(kind, "generation").encode("the dog").ids == [BEGIN_ID, *bare]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_training_text_survives_a_round_trip(kind: Kind, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert tokenizer.decode(tokenizer.encode(text).ids) == clean_text(text)


@given(text=st.text())
def test_byte_bpe_is_lossless_on_any_clean_text(text: str) -> None:
    tokenizer = tokenizer_of("byte_bpe")
    ids = tokenizer.encode(text).ids
    assert UNKNOWN_ID not in ids
    assert tokenizer.decode(ids) == clean_text(text)


@given(text=st.text(alphabet=ALPHABET))
def test_character_is_lossless_on_characters_it_saw(text: str) -> None:
    tokenizer = tokenizer_of("character")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(clean_text(text))
    assert tokenizer.decode(ids) == clean_text(text)


@given(text=st.text())
def test_character_marks_exactly_what_it_never_saw(text: str) -> None:
    ids = tokenizer_of("character").encode(text, add_special_tokens=False).ids
    shown = [c for c in clean_text(text) if not is_blank(c) or c in ALPHABET]  # the rest is not worth a token
    assert [i == UNKNOWN_ID for i in ids] == [c not in ALPHABET for c in shown]


@given(words=st.lists(st.sampled_from(["The", "dog,", "Größe", "doesn't", "f(x):", "日本語"]), min_size=1))
def test_bpe_keeps_words_and_single_spaces(words: list[str]) -> None:
    tokenizer = tokenizer_of("bpe")
    text = " ".join(words)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@given(kind=st.sampled_from(KINDS), text=st.text(alphabet=ALPHABET))
def test_a_stream_gives_what_decoding_at_once_gives(kind: Kind, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    expected = tokenizer.decode(ids)
    # What a stream withholds is an unfinished character; a whole text leaves none.
    assert streamed(tokenizer, ids, []) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_continues_a_prompt_keeps_the_space_between(kind: Kind) -> None:
    tokenizer = tokenizer_of(kind, "generation")
    whole = tokenizer.encode("the lazy dog").ids
    prompt = tokenizer.encode("the lazy").ids
    assert whole[: len(prompt)] == prompt
    assert streamed(tokenizer, whole[len(prompt) :], prompt) == " dog"


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_carries_everything(kind: Kind, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    again = load_tokenizer(path)
    for text in TEXTS:
        assert again.encode(text).ids == tokenizer.encode(text).ids
        assert again.decode(again.encode(text).ids) == clean_text(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_special_token_in_a_text_is_text(kind: Kind, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("a</s>b<pad>", add_special_tokens=False).ids
    assert not set(ids) & {PADDING_ID, BEGIN_ID, END_ID}
    assert tokenizer.decode(ids) == "a</s>b<pad>"


def test_vocabulary_size_limits_every_kind() -> None:
    for kind, size in (("bpe", 120), ("byte_bpe", 300), ("character", 20)):
        settings = TokenizerSettings.load({"kind": kind, "vocabulary_size": size}, source="test")
        assert train_tokenizer(settings, TEXTS, "translation").get_vocab_size() <= size


def test_a_small_character_vocabulary_keeps_the_frequent_ones() -> None:
    settings = TokenizerSettings(kind="character", vocabulary_size=4 + 4)
    tokenizer = train_tokenizer(settings, ["aaaa bbb cc ee ff ab ", "ab ab"], "translation")
    assert {"a", "b", " "} <= set(tokenizer.get_vocab())
    assert "f" not in tokenizer.get_vocab() or "e" not in tokenizer.get_vocab()


def test_normalization_brings_spellings_together() -> None:
    settings = TokenizerSettings(kind="character", normalization="nfkc")
    tokenizer = train_tokenizer(settings, ["5 é12"], "translation")
    plain = tokenizer.encode("5 é1").ids
    assert tokenizer.encode("\uff15\u202fe\u0301\u00b9").ids == plain
    assert UNKNOWN_ID not in plain


def test_no_text_is_an_error() -> None:
    with pytest.raises(CorpusError, match="no text"):
        train_tokenizer(TokenizerSettings(kind="character"), [""], "translation")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(RunError, match="cannot read"):
        load_tokenizer(path)
    path.write_text("{}")
    with pytest.raises(RunError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(path)


def test_lowercase_folds_what_is_read_and_stays_in_the_file(tmp_path: Path) -> None:
    settings = TokenizerSettings(kind="character", normalization="nfkc", lowercase=True)
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer(settings, TEXTS, "translation").to_str(), encoding="utf-8")
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("THE QUICK").ids == tokenizer.encode("the quick").ids
    assert tokenizer.decode(tokenizer.encode("GRÖẞE").ids) == "größe"


def test_stripped_accents_are_not_read_and_syllables_stay_whole() -> None:
    texts = ["kesäkuuta ČERVENCE 월요일 Μαΐου"]
    settings = TokenizerSettings(kind="character", lowercase=True, strip_accents=True)
    tokenizer = train_tokenizer(settings, texts, "translation")
    assert tokenizer.encode("kesakuuta cervence").ids == tokenizer.encode("KESÄKUUTA ČERVENCE").ids
    assert tokenizer.decode(tokenizer.encode("월요일 Μαΐου").ids) == "월요일 μαιου"


def test_digits_stand_in_groups() -> None:
    settings = TokenizerSettings(kind="bpe", max_digits=2, vocabulary_size=200)
    tokenizer = train_tokenizer(settings, [f"in {number}" for number in range(1900, 2000)], "translation")
    assert tokenizer.encode("in 1984").tokens == ["▁in", "▁", "19", "84", "</s>"]
    assert tokenizer.decode(tokenizer.encode("in 1984").ids) == "in 1984"
    with pytest.raises(ValidationError, match="max_digits 2 is for kind bpe, not character"):
        TokenizerSettings(kind="character", max_digits=2)
