"""One definition of clean text: what training, the server, evaluation and old bundles make of the same characters."""

import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from dragoman.common.normalization import normalize, prepare_tokenizer
from dragoman.common.text import clean_text, is_blank
from dragoman.model.corpora.cleaning import clean_example
from dragoman.model.corpora.corpus import Pair
from dragoman.model.recipe import TokenizerSettings
from dragoman.model.subwords import BpeDropout
from dragoman.model.tokenizer import UNKNOWN_ID, load_tokenizer, train_tokenizer
from dragoman.server.bundle.reader import Bundle

Kind = Literal["bpe", "byte_bpe", "character"]
KINDS: tuple[Kind, ...] = ("bpe", "byte_bpe", "character")
SENTENCES = [
    "The meeting of 2020-05-06, at 14:30, was short.",
    "Die Sitzung vom 6. Mai 2020 dauerte zwei Stunden.",
    "می\u200cخواهم و कर\u200dम",
]
CODE = ["def f(x):\n\treturn x\n", "for i in range(3):\n    print(i)\n"]
FIXTURES = Path(__file__).parents[1] / "fixtures" / "bundles"

# Mostly ordinary letters, often something that people do not see.
texts = st.text(
    st.one_of(
        st.sampled_from("The 2020-05-06 Stunden"),
        st.sampled_from(
            "\0\x07\x1b\t\n\r\x0b\x0c\x85\xa0\xad\u2003\u200b\u200d\u2028\u2029\u202f\u2060\u3000\ufeff"
        ),
        st.characters(exclude_categories=["Cs"]),
    )
)


def tokenizer_of(kind: Kind, **settings: object) -> Tokenizer:
    of_kind = TokenizerSettings.load({"kind": kind, "vocabulary_size": 400, **settings}, source="test")
    return train_tokenizer(of_kind, map(clean_text, SENTENCES + CODE), "translation")


TOKENIZERS = [
    *map(tokenizer_of, KINDS),
    tokenizer_of("bpe", normalization="nfkc", lowercase=True, strip_accents=True, max_digits=2),
    tokenizer_of("character", normalization="nfc"),
]


def without_cleaning(tokenizer: Tokenizer, own: normalizers.Normalizer | None = None) -> Tokenizer:
    """The tokenizer as a release before the cleaning wrote it."""
    old = Tokenizer.from_str(tokenizer.to_str())
    old.normalizer = own
    return old


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("\ufeff2020-05-06", "2020-05-06"),
        ("2020\0-05-06\x07", "2020-05-06"),
        ("6.\xa0Mai\u202f2020", "6. Mai 2020"),
        ("6.\x85Mai\u20282020\u2029", "6. Mai 2020 "),
        ("a\r\nb\tc\rd\x0ce", "a\nb\tc d e"),
        ("\x0cx = 1\n\x0c\x0cclass A:\x0b\n", "x = 1\nclass A:\n"),
        ("\x1f\x0cx\0\x0c\r\r\n\x0c", "x\n"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d👧", "👩\u200d👧"),
    ],
)
def test_what_becomes_of_what_nobody_sees(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean


@given(text=texts)
def test_clean_text_holds_no_other_white_space_and_no_control_character(text: str) -> None:
    clean = clean_text(text)
    assert clean_text(clean) == clean
    for character in clean:
        assert character in "\t\n " or unicodedata.category(character) not in {"Cc", "Zs", "Zl", "Zp"}


@given(text=texts)
def test_a_blank_text_is_one_that_shows_nothing(text: str) -> None:
    shown = [c for c in clean_text(text) if not c.isspace() and unicodedata.category(c) != "Cf"]
    if shown:
        assert not is_blank(text)
    assert is_blank("\0\x07 \xa0\ufeff\u200b\n\u2029\x85\xad\u202e")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=texts)
def test_a_server_reads_what_training_read(tokenizer: Tokenizer, text: str) -> None:
    """Training reads cleaned corpora, a server whatever callers send: both through the same file."""
    served = Tokenizer.from_str(tokenizer.to_str())
    prepare_tokenizer(served)
    trained_on = clean_example(Pair(text, text)).source
    assert served.encode(text).ids == tokenizer.encode(trained_on).ids
    assert normalize(served, text) == normalize(tokenizer, trained_on)


@given(text=texts)
def test_dropout_reads_the_same_text(text: str) -> None:
    tokenizer = TOKENIZERS[0]
    assert (
        BpeDropout(tokenizer, 0.0, seed=1).encode(text)
        == tokenizer.encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_nothing_that_is_not_seen_is_an_unknown_token(tokenizer: Tokenizer) -> None:
    for code in [*range(0x3001), 0xFEFF]:
        if is_blank(chr(code)):
            assert UNKNOWN_ID not in tokenizer.encode(f"a{chr(code)}e").ids, hex(code)


def test_joiners_and_line_feeds_stay_where_the_vocabulary_knows_them() -> None:
    for tokenizer in TOKENIZERS[:3]:
        for text in (*SENTENCES, *CODE):
            assert tokenizer.decode(tokenizer.encode(text).ids) == text
    without = train_tokenizer(TokenizerSettings(kind="character"), SENTENCES[:2], "translation")
    assert without.decode(without.encode("Mai\n20\u200c20\tS").ids) == "Mai 2020 S"


@pytest.mark.parametrize("tokenizer", [TOKENIZERS[0], TOKENIZERS[2]])
@given(text=texts)
def test_an_old_file_reads_as_a_new_one_where_its_vocabulary_has_no_special_spaces(
    tokenizer: Tokenizer, text: str
) -> None:
    old = without_cleaning(tokenizer)
    assert UNKNOWN_ID in old.encode("2020\xa0\0").ids
    prepare_tokenizer(old)
    assert old.encode(text).ids == tokenizer.encode(text).ids


@given(text=texts)
@example(text="\x1f\x0c")
def test_an_old_file_of_bytes_loses_control_characters_alone(text: str) -> None:
    """As its training did: to bytes no character is unknown."""
    old = without_cleaning(TOKENIZERS[1])
    prepare_tokenizer(old)
    assert clean_text(old.decode(old.encode(text).ids)) == clean_text(text)
    assert old.decode(old.encode("6.\xa0Mai\0\ufeff").ids) == "6.\xa0Mai"


def test_an_old_vocabulary_with_a_no_break_space_keeps_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZERS[2].to_str().replace('"z"', '"\xa0"'))
    path = tmp_path / "tokenizer.json"
    path.write_text(without_cleaning(tokenizer, normalizers.Sequence([normalizers.NFC()])).to_str(), "utf-8")
    old = load_tokenizer(path)
    assert old.decode(old.encode("\ufeffzwei\xa0Mai\u202f2020\0 \u0041\u030a").ids) == "wei\xa0Mai 2020 "
    assert old.encode("M\xa0M").tokens == ["M", "\xa0", "M", "</s>"]


@pytest.mark.parametrize("name", ["spell", "count"])
def test_an_old_bundle_cleans_what_it_reads(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "2"
    shutil.copytree(FIXTURES / name / "2", folder)
    tokenizer = Bundle.read(folder).tokenizer
    assert tokenizer.encode("\ufeff21\0").ids == tokenizer.encode("21").ids
    if name == "spell":
        assert tokenizer.encode("2\xa01\x85").ids == tokenizer.encode("2 1 ").ids
