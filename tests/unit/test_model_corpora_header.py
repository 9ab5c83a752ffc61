"""The first line of a table that names its columns is no pair: it is left out where that is sure, and always said."""

from pathlib import Path

import pytest
from tests.unit.corpus_files import load

from dragoman.model.corpora.column_names import is_header
from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.report import Reason

ROWS = "".join(f"source {n}\ttarget {n}\n" for n in range(60))
SECTION = 'kind = "tsv"\ntrain = "*.tsv"\n'


@pytest.mark.parametrize(
    "cells",
    [
        ("source", "target"),
        ("SRC", "TGT"),
        ("en", "de"),
        ("de", "en"),
        ("pt-BR", "zh_Hans"),
        ("English", "German"),
        ('"input"', '"output"'),
        ("# source", "target "),
        ("source_en", "target_de"),
        ("original text", "summary"),
        ("id", "text"),
    ],
)
def test_names_of_columns(cells: tuple[str, str]) -> None:
    assert is_header(cells)


@pytest.mark.parametrize(
    "cells",
    [
        ("source", "Quelle"),
        ("the", "der"),
        ("it", "es"),  # codes, and words
        ("no", "no"),
        ("text", "text"),
        ("English", "Englisch"),
        ("le 3 mars 2024", "2024-03-03"),
        ("1", "2"),
        ("", ""),
        ("source",),
        ("en français", "en"),
    ],
)
def test_pairs_of_texts(cells: tuple[str, ...]) -> None:
    assert not is_header(cells)


def test_the_header_of_each_file_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("\ufeffsource\ttarget\n" + ROWS)
    (tmp_path / "b.tsv").write_text("en\tde\n" + ROWS.replace("source", "second"))
    corpus = load(tmp_path, SECTION)
    assert len([*corpus.train, *corpus.validation, *corpus.test]) == corpus.report.num_kept == 120
    [line] = corpus.report.lines()
    assert line == (
        "left out 2 of 122 pairs: 2 header (first: a.tsv, line 1: 'source' and 'target'; "
        "corpus.header = false keeps it)"
    )


def test_a_header_may_be_kept_or_be_any_line(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("source\ttarget\n" + ROWS)
    corpus = load(tmp_path, SECTION + "header = false")
    assert Pair("source", "target") in [*corpus.train, *corpus.validation, *corpus.test]
    assert corpus.report.lines() == []
    (tmp_path / "a.tsv").write_text("Frage\tAntwort\n" + ROWS)
    corpus = load(tmp_path, SECTION + "header = true")
    assert corpus.report.left_out == {Reason.HEADER: 1}
    assert corpus.report.first[Reason.HEADER] == "a.tsv, line 1: 'Frage' and 'Antwort'"
    (tmp_path / "a.tsv").write_text("one\n" + ROWS)
    assert load(tmp_path, SECTION + "header = true").report.left_out == {Reason.HEADER: 1}
    assert load(tmp_path, SECTION).report.left_out == {Reason.MALFORMED: 1}


def test_names_further_down_are_a_pair(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(ROWS + "source\ttarget\n")
    assert load(tmp_path, SECTION).report.num_kept == 61
