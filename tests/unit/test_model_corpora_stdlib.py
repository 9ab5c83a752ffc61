import ast
from pathlib import Path

import pytest

from dragoman.common.text import clean_text
from dragoman.model.corpora.load import load_corpus
from dragoman.model.corpora.stdlib import read_stdlib
from dragoman.model.errors import CorpusError
from dragoman.model.recipe import load_recipe


def test_this_interpreters_own_library() -> None:
    corpus = load_corpus(load_recipe("stdlib"))
    splits = [list(map(str, split)) for split in (corpus.train, corpus.validation, corpus.test)]
    sizes = [sum(map(len, split)) for split in splits]
    assert sizes[0] > 3_000_000
    assert all(0.01 < size / sum(sizes) < 0.15 for size in sizes[1:])
    assert any("class JSONEncoder" in text for split in splits for text in split)
    for text in splits[1]:
        ast.parse(text)
        assert clean_text(text) == text


def test_files_are_split_by_path_and_tests_and_packages_are_left_out(tmp_path: Path) -> None:
    for n in range(200):
        (tmp_path / f"module_{n}.py").write_text(f"x = {n}\n")
    for name in (
        "test/test_x.py",
        "site-packages/x.py",
        "json/tests/x.py",
        "encodings/cp1.py",
        "config-3/x.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("no = 'never'\n")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xfc\n")
    corpus = read_stdlib(tmp_path)
    everything = [*corpus.train, *corpus.validation, *corpus.test]
    assert sorted(everything) == sorted(f"x = {n}\n" for n in range(200))
    (tmp_path / "module_new.py").write_text("y = 1\n")
    again = read_stdlib(tmp_path)
    assert set(corpus.validation) <= set(again.validation), "a new file moves no other"
    assert set(corpus.test) <= set(again.test)


def test_an_interpreter_without_source_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="corpus 'stdlib' is empty: no Python source in"):
        read_stdlib(tmp_path)
