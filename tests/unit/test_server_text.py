"""Text grows by whole characters, joins to what decoding everything gives, and ends before a stop string."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dragoman.model.recipe import TokenizerSettings
from dragoman.model.tokenizer import train_tokenizer
from dragoman.server.decoding.text import OutputText, StopStrings, decode_text

SENTENCES = [
    "the quick brown fox jumps over the lazy dog, and then sleeps",
    "für Ärger sorgen größere Übel: naïve façade œuvre",
    "日本語のテキスト、漢字かな交じり",
    "emoji 😀👩‍👩‍👧 and é́ combining",
    "def f(x):\n    return x  # two  spaces\n\n\n",
]


def build(kind: str) -> Tokenizer:
    return train_tokenizer(
        TokenizerSettings.load({"kind": kind, "vocabulary_size": 400}, source="test"),
        SENTENCES,
        "translation",
    )


TOKENIZERS = {kind: build(kind) for kind in ("bpe", "byte_bpe", "character")}
KINDS = sorted(TOKENIZERS)


@st.composite
def chunked_ids(draw: st.DrawFn) -> tuple[str, list[list[int]]]:
    """A tokenizer, and any sequence of its tokens (not only such as text encodes to) cut into chunks."""
    kind = draw(st.sampled_from(KINDS))
    token = st.integers(4, TOKENIZERS[kind].get_vocab_size() - 1)
    return kind, draw(st.lists(st.lists(token, max_size=4), max_size=12))


def stream(text: OutputText, chunks: Sequence[Sequence[int]]) -> list[str]:
    return [*(text.push(chunk) for chunk in chunks), text.finish()]


@given(chunked_ids())
@settings(max_examples=100, deadline=None)
def test_pieces_join_to_the_whole(case: tuple[str, list[list[int]]]) -> None:
    kind, chunks = case
    tokenizer = TOKENIZERS[kind]
    whole = tokenizer.decode([token for chunk in chunks for token in chunk])
    text = OutputText(tokenizer)
    assert "".join(stream(text, chunks)) == whole
    assert text.text == whole
    at_once = OutputText(tokenizer)
    at_once.finish([token for chunk in chunks for token in chunk])
    assert at_once.text == decode_text(tokenizer, [token for chunk in chunks for token in chunk]) == whole


@given(chunked_ids(), st.sampled_from(SENTENCES))
@settings(max_examples=100, deadline=None)
def test_pieces_continue_a_prompt(case: tuple[str, list[list[int]]], prompt: str) -> None:
    kind, chunks = case
    tokenizer = TOKENIZERS[kind]
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    new_ids = [token for chunk in chunks for token in chunk]
    before, after = tokenizer.decode(prompt_ids), tokenizer.decode([*prompt_ids, *new_ids])
    assert after.startswith(before)
    assert "".join(stream(OutputText(tokenizer, context_ids=prompt_ids), chunks)) == after[len(before) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_one_token_at_a_time_never_shows_half_a_character(kind: str, sentence: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(sentence, add_special_tokens=False).ids
    pieces = stream(OutputText(tokenizer), [[token] for token in ids])
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_cut_character_at_the_end_is_flushed() -> None:
    tokenizer = TOKENIZERS["byte_bpe"]
    ids = tokenizer.encode("ok 🜁", add_special_tokens=False).ids
    text = OutputText(tokenizer)
    assert "".join(stream(text, [[token] for token in ids[:-1]])).startswith("ok ")
    assert text.text == tokenizer.decode(ids[:-1])


def test_a_prompt_that_ends_in_the_replacement_character_is_not_repeated() -> None:
    tokenizer = TOKENIZERS["byte_bpe"]
    prompt_ids = tokenizer.encode("odd \N{REPLACEMENT CHARACTER}", add_special_tokens=False).ids
    new_ids = tokenizer.encode("fox", add_special_tokens=False).ids
    assert "".join(stream(OutputText(tokenizer, context_ids=prompt_ids), [[i] for i in new_ids])) == "fox"


def characters(text: str) -> list[list[int]]:
    return [[token] for token in TOKENIZERS["character"].encode(text, add_special_tokens=False).ids]


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    text = OutputText(TOKENIZERS["character"], stop=["dog", "oh"])
    given_out = [text.push(token) for token in characters("the do")]
    assert given_out == ["t", "h", "e", " ", "", ""]
    assert text.push(*characters("x")) == "dox"
    assert [text.push(token) for token in characters(" dog")] == [" ", "", "", ""]
    assert text.stopped
    assert text.text == "the dox "
    assert text.push(*characters("a")) == text.finish() == ""


def test_what_was_held_back_is_given_at_the_end() -> None:
    text = OutputText(TOKENIZERS["character"], stop=["dog"])
    assert "".join(stream(text, characters("a do"))) == "a do"
    assert not text.stopped


def test_overlapping_beginnings_are_all_considered() -> None:
    text = OutputText(TOKENIZERS["character"], stop=["oox"])
    assert "".join(stream(text, characters("fooox"))) == "fo"
    assert text.stopped


@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), min_size=20, max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_the_engine_and_the_stream_agree_where_a_text_ends(
    whole: str, stop: list[str], sizes: list[int]
) -> None:
    tokenizer = TOKENIZERS["character"]
    ids = tokenizer.encode(whole, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == whole
    condition = StopStrings(tokenizer, context_ids=(), stop=stop)
    accepted = next((n for n, token in enumerate(ids, start=1) if condition.accept(token)), None)
    produced = ids[:accepted]

    text, position = OutputText(tokenizer, stop=stop), 0
    for size in sizes:
        text.push(produced[position : position + size])
        position += size
    text.finish()

    assert text.stopped == (accepted is not None)
    assert not any(each in text.text for each in stop)
    if text.stopped:
        assert any(whole[len(text.text) :].startswith(each) for each in stop)
    else:
        assert text.text == whole
