"""A suppressed text is in no output: tokens that would complete it, and no others, are impossible."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from dragoman.model.recipe import TokenizerSettings
from dragoman.model.tokenizer import train_tokenizer
from dragoman.server.decoding.constraints import Constraints
from dragoman.server.decoding.joining import UnknownDecoderError
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.suppression import SuppressedTexts, TokenTexts, Vocabulary

END = 3
SENTENCES = [
    "the dog's 14 doghouses cost 2014-05-14, or 3.14 a day",
    "für Ärger sorgen größere Übel: naïve façade œuvre 日本 😀",
    "def f(x):\n    return x  # two  spaces\n\n\n",
]
TOKENIZERS = {
    kind: train_tokenizer(
        TokenizerSettings.load({"kind": kind, "vocabulary_size": 420}, source="test"),
        SENTENCES,
        "translation",
    )
    for kind in ("bpe", "byte_bpe", "character")
}
VOCABULARIES = {kind: Vocabulary.of(tokenizer) for kind, tokenizer in TOKENIZERS.items()}
TEXTS = [
    "dog",
    "14",
    "-",
    ".",
    " ",
    "e d",
    "og's 1",
    "größere Ü",
    "日",
    "😀",
    "\n\n",
    "x  #",
    "0",
    "the dog's 14 dog",
    "é",
]


def forbidden(kind: str, texts: list[str], token_ids: list[int], *, continues: bool) -> set[int]:
    row = np.zeros(TOKENIZERS[kind].get_vocab_size(), np.float32)
    SuppressedTexts(VOCABULARIES[kind], texts).forbid(row, token_ids, continues=continues)
    return set(np.flatnonzero(row == -np.inf).tolist())


@st.composite
def histories(draw: st.DrawFn) -> tuple[str, list[str], list[int]]:
    """A tokenizer, texts to suppress, and an output without them: any tokens, and parts of real texts."""
    kind = draw(st.sampled_from(sorted(TOKENIZERS)))
    tokenizer = TOKENIZERS[kind]
    texts = draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4))
    anything = st.lists(st.integers(4, tokenizer.get_vocab_size() - 1), max_size=8)
    real = tokenizer.encode(draw(st.sampled_from(SENTENCES + TEXTS)), add_special_tokens=False).ids
    start = draw(st.integers(0, len(real)))
    token_ids = [*draw(anything), *real[start : draw(st.integers(start, len(real)))]]
    while token_ids and any(text in tokenizer.decode(token_ids) for text in texts):
        token_ids.pop()
    return kind, texts, token_ids


@given(histories())
@settings(max_examples=300, deadline=None)
def test_exactly_what_would_complete_a_text_is_impossible(case: tuple[str, list[str], list[int]]) -> None:
    kind, texts, token_ids = case
    tokenizer = TOKENIZERS[kind]
    expected = {
        token_id
        for token_id in range(tokenizer.get_vocab_size())
        if any(text in tokenizer.decode([*token_ids, token_id]) for text in texts)
    }
    assert forbidden(kind, texts, token_ids, continues=False) == expected


@given(histories())
@settings(max_examples=100, deadline=None)
def test_what_continues_a_prompt_keeps_its_leading_space(case: tuple[str, list[str], list[int]]) -> None:
    kind, texts, token_ids = case
    tokenizer = TOKENIZERS[kind]
    prompt = tokenizer.encode("#", add_special_tokens=False).ids
    before = tokenizer.decode(prompt)
    expected = {
        token_id
        for token_id in range(tokenizer.get_vocab_size())
        if any(
            text in tokenizer.decode([*prompt, *token_ids, token_id]).removeprefix(before) for text in texts
        )
    }
    if not any(text in tokenizer.decode([*prompt, *token_ids]).removeprefix(before) for text in texts):
        assert forbidden(kind, texts, token_ids, continues=True) == expected


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@pytest.mark.parametrize("texts", [["dog"], ["-"], ["14"], ["."], [" "], ["日", "0", "e"]])
def test_no_output_holds_a_suppressed_text(kind: str, texts: list[str]) -> None:
    """Whatever a model prefers: here what the sentence itself would be, and anything else by chance."""
    tokenizer = TOKENIZERS[kind]
    suppressed = SuppressedTexts(VOCABULARIES[kind], texts)
    constraints = Constraints(
        DecodingParameters(max_tokens=60, suppressed_texts=tuple(texts)),
        END,
        (),
        never=(0, 1, 2),
        suppressed_texts=suppressed,
    )
    for seed in range(20):
        rng = np.random.default_rng(seed)
        wanted = tokenizer.encode(SENTENCES[0], add_special_tokens=False).ids
        token_ids: list[int] = []
        while len(token_ids) < 60 and END not in token_ids:
            row = rng.standard_normal(tokenizer.get_vocab_size()).astype(np.float32)
            if len(token_ids) < len(wanted):
                row[wanted[len(token_ids)]] = 9.0
            token_ids.append(int(constraints.adjusted(row, token_ids).argmax()))
        output = tokenizer.decode(token_ids)
        assert not any(text in output for text in texts), output
    assert any(text in SENTENCES[0] for text in texts)


def test_the_end_is_possible_where_nothing_else_is() -> None:
    every_character = sorted(set("".join(SENTENCES)))
    suppressed = SuppressedTexts(VOCABULARIES["character"], every_character)
    constraints = Constraints(
        DecodingParameters(max_tokens=9, suppressed_texts=tuple(every_character)),
        END,
        (),
        never=(0, 1, 2),
        suppressed_texts=suppressed,
    )
    row = constraints.adjusted(np.zeros(TOKENIZERS["character"].get_vocab_size(), np.float32), [])
    assert np.flatnonzero(row > -np.inf).tolist() == [END]


def test_texts_that_hold_others_add_nothing() -> None:
    one = forbidden("bpe", ["og"], [], continues=True)
    assert forbidden("bpe", ["og", "dog", "doghouses", "og"], [], continues=True) == one
    assert one


def test_searching_a_vocabulary_is_searching_each_token() -> None:
    rng = random.Random(2)
    texts = [bytes(rng.choices(b"ab\xff\xc3\xa9", k=rng.randint(0, 6))) for _ in range(300)]
    tokens = TokenTexts(texts)
    for _ in range(200):
        wanted = bytes(rng.choices(b"ab\xc3\xa9", k=rng.randint(1, 4)))
        assert set(tokens.holding(wanted).tolist()) == {i for i, text in enumerate(texts) if wanted in text}
        assert set(tokens.beginning_with(wanted).tolist()) == {
            i for i, text in enumerate(texts) if text.startswith(wanted)
        }


def test_a_tokenizer_of_another_kind_is_refused_by_name() -> None:
    other = Tokenizer.from_str(TOKENIZERS["bpe"].to_str())
    other.decoder = decoders.WordPiece()
    with pytest.raises(UnknownDecoderError, match="WordPiece"):
        Vocabulary.of(other)
