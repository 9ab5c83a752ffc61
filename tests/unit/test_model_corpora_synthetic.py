"""Pairs that a model made beside a corpus' own: what of them is learned from, and what is told."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.unit.corpus_files import PARALLEL, load, numbered, write

from dragoman.common.errors import SettingsError
from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.report import Reason
from dragoman.model.errors import CorpusError

MADE = 'synthetic_pairs = ["made.jsonl"]\n'


def write_pairs(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    path.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in pairs))


def test_made_pairs_stand_behind_the_corpus_own_and_leave_its_other_splits(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left"), b=numbered("right"))
    own = load(tmp_path, PARALLEL)
    made = [Pair(f"made {n}", f"written {n}") for n in range(30)]
    write_pairs(tmp_path / "made.jsonl", made)
    corpus = load(tmp_path, PARALLEL + MADE)
    assert list(corpus.train) == [*own.train, *made]
    assert list(corpus.train) == [*own.train, *made], "a second pass gives the same"
    assert len(corpus.train) == len(own.train) + 30
    assert (corpus.validation, corpus.test) == (own.validation, own.test)
    assert corpus.num_characters == own.num_characters + sum(len(s) + len(t) for s, t in made)
    assert "made 29" in list(corpus.texts())


def test_what_validates_or_tests_is_not_learned_from_in_another_dress(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left"), b=numbered("right"))
    own = load(tmp_path, PARALLEL)
    held_out, tested = own.validation[0], own.test[0]
    assert isinstance(held_out, Pair)
    assert isinstance(tested, Pair)
    write_pairs(
        tmp_path / "made.jsonl",
        [
            ("made", held_out.target.replace("right", "ri\x07ght")),
            (tested.source, "written"),
            (held_out.target, tested.source),  # the other sides: another text that happens to be like it
            ("made", "written"),
        ],
    )
    corpus = load(tmp_path, PARALLEL + MADE)
    assert list(corpus.train)[len(own.train) :] == [(held_out.target, tested.source), ("made", "written")]
    assert corpus.report.left_out == {Reason.HELD_OUT: 2}
    assert corpus.report.lines() == [
        "left out 2 of 104 pairs: 2 with a text of the validation or test split (first: made.jsonl, line 1)"
    ]


def test_files_by_pattern_are_cleaned_like_any_other(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left"), b=numbered("right"))
    write_pairs(tmp_path / "made-1.jsonl", [("one", "eins"), ("one", "eins"), ("", "zwei")])
    write_pairs(tmp_path / "made-2.jsonl", [("three", "dr\x07ei")])
    with (tmp_path / "made-2.jsonl").open("a") as file:
        file.write("not JSON\n")
    setting = 'synthetic_pairs = ["made-*.jsonl"]\n'
    corpus = load(tmp_path, PARALLEL + setting)
    assert list(corpus.train)[-3:] == [("one", "eins"), ("one", "eins"), ("three", "drei")]
    assert corpus.report.left_out == {Reason.EMPTY: 1, Reason.MALFORMED: 1}
    assert (corpus.report.num_duplicates, corpus.report.num_mended) == (1, 1)
    dropped = load(tmp_path, PARALLEL + setting + "drop_duplicates = true\n")
    assert len(dropped.train) == len(list(dropped.train)) == len(corpus.train) - 1


def test_a_corpus_that_comes_with_the_project_takes_them_too(tmp_path: Path) -> None:
    for split in ("train", "val", "test_2016_flickr"):
        write(
            tmp_path, **{f"{split}.de": numbered(f"{split} de", 3), f"{split}.en": numbered(f"{split} en", 3)}
        )
    write_pairs(tmp_path / "made.jsonl", [("made", "written"), ("made", "val en 1")])
    corpus = load(tmp_path, f'kind = "multi30k"\nfolder = "{tmp_path}"\n{MADE}')
    assert list(corpus.train)[2:] == [("train de 2", "train en 2"), ("made", "written")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no file made\.jsonl in "),
        ("", r"no pair in made\.jsonl is fit to train on: no lines"),
        (
            '{"source": "x"}\n',
            r"fit to train on: 1 malformed \(first: made\.jsonl, line 1: 'target' is missing\)",
        ),
    ],
)
def test_a_file_that_gives_nothing_is_an_error(tmp_path: Path, content: str | None, message: str) -> None:
    write(tmp_path, a=numbered("left"), b=numbered("right"))
    if content is not None:
        write(tmp_path, **{"made.jsonl": content})
    with pytest.raises(CorpusError, match=message):
        load(tmp_path, PARALLEL + MADE)


def test_standard_input_can_only_be_one_of_a_corpus_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "pairs").open("w+") as pairs:
        pairs.write("".join(f"{n}\t{n}\n" for n in range(100)))
        pairs.seek(0)
        monkeypatch.setattr("sys.stdin", pairs)
        with pytest.raises(CorpusError, match="standard input is read once"):
            load(tmp_path, 'kind = "tsv"\ntrain = "-"\nsynthetic_pairs = ["-"]\n')


def test_they_are_for_translation(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"corpus\.synthetic_pairs = \['made\.jsonl'\] is for translation"
    ):
        load(tmp_path, f'kind = "jsonl"\ntrain = "x.jsonl"\n{MADE}', task="generation")
