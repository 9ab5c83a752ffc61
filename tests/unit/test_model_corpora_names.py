"""Files as people name and pack them: patterns from anywhere, files that say by their content what they are."""

import bz2
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.corpus_files import PARALLEL, load, numbered, write

from dragoman.common.errors import DragomanError, SettingsError
from dragoman.model.corpora.corpus import Pair
from dragoman.model.errors import CorpusError

TSV = "".join(f"source {n}\ttarget {n}\n" for n in range(60)).encode()
PAIRS = {Pair(f"source {n}", f"target {n}") for n in range(60)}


def tsv(train: str) -> str:
    return f'kind = "tsv"\ntrain = {train!r}\n'


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("pairs.tsv", content)
    return file.getvalue()


def test_a_pattern_may_be_absolute_or_lead_out_of_the_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    for shard in range(3):
        (there / f"pairs-{shard}.tsv").write_bytes(b"".join(TSV.splitlines(keepends=True)[shard::3]))
    for pattern in (f"{there}/pairs-*.tsv", "../there/pairs-?.tsv"):
        corpus = load(here, tsv(pattern))
        assert {*corpus.train, *corpus.validation, *corpus.test} == PAIRS


def test_a_name_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/pairs.tsv").write_bytes(TSV)
    write(tmp_path / "home", a=numbered("left"), b=numbered("right"))
    for section in (
        tsv("~/pairs.tsv"),
        tsv("~/p*.tsv"),
        PARALLEL.replace('"a"', '"~/a"').replace('"b"', '"~/b"'),
    ):
        assert load(tmp_path, section).train


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("name", ["pairs", "pairs.tsv", "pairs.txt"])
def test_a_packed_file_is_known_by_its_content(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack(TSV))
    corpus = load(tmp_path, tsv(name))
    assert {*corpus.train, *corpus.validation, *corpus.test} == PAIRS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bz2.compress(TSV), "is packed by bzip2, not plain text: unpack it"),
        (b"\x28\xb5\x2f\xfd" + bytes(50), "is packed by zstd, not plain text: unpack it"),
        (zipped(TSV), "is a zip archive, not plain text: unpack it"),
        (TSV.decode().encode("utf-16"), "is UTF-16 text, not plain text: convert it to UTF-8"),
        (b"PAR1" + bytes(50), 'is Parquet, not plain text: read it with corpus.kind = "parquet"'),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "pairs.tsv").write_bytes(content)
    with pytest.raises(CorpusError) as caught:
        load(tmp_path, tsv("pairs.tsv"))
    assert str(caught.value).startswith(f"{tmp_path / 'pairs.tsv'} {message}")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (".", r"^'\.' is the folder .*, not a file"),
        ("..", r"^'\.\.' is the folder"),
        ("/", r"^'/' is the folder"),
        ("folder", r"^'folder' is the folder"),
        ("nothing", r"^no file nothing in "),
        ("/nowhere/*.tsv", r"^no file /nowhere/\*\.tsv$"),
        ("**.tsv", r"^'\*\*\.tsv' is no pattern of files: "),
        ("~nobody-of-this-name/x", r"^no file ~nobody"),
        ("unreadable", r"^cannot read .*unreadable: Permission denied"),
        ("pipe", r"pipe is no regular file: a corpus is read several times"),
        ("/dev/zero", r"^/dev/zero is no regular file"),
    ],
)
def test_a_name_that_is_no_file(tmp_path: Path, train: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "unreadable").write_bytes(TSV)
    (tmp_path / "unreadable").chmod(0)
    if train == "unreadable" and os.access(tmp_path / "unreadable", os.R_OK):
        pytest.skip("the superuser reads everything")
    with pytest.raises(CorpusError, match=message) as caught:
        load(tmp_path, tsv(train))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [".", "folder", "nothing", "pipe", "a\\u0000b"])
def test_a_name_that_is_no_file_of_parallel_text(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path, b=numbered("right"))
    with pytest.raises(CorpusError, match=r"^(cannot read|.*pipe is no regular file)"):
        load(tmp_path, PARALLEL.replace('"a"', f'"{name}"'))


@pytest.mark.parametrize(
    "section",
    [tsv(""), tsv("a") + "test = ''", PARALLEL.replace('"a"', '""'), PARALLEL + "synthetic_pairs = ['']"],
)
def test_a_name_is_not_empty(tmp_path: Path, section: str) -> None:
    with pytest.raises(SettingsError, match=r"corpus\.\S+ = '': String should have at least 1 character"):
        load(tmp_path, section)


def test_a_corpus_all_held_out_is_not_called_empty(tmp_path: Path) -> None:
    write(tmp_path, a="same\n" * 50, b=numbered("right", 50))
    with pytest.raises(CorpusError) as caught:
        load(tmp_path, PARALLEL)
    assert str(caught.value) == (
        "corpus 'mine': of 50 pairs in its train split none is left to train on, all are held out (validation_share "
        "= 0.02, test_share = 0.02; those with an equal source stay together): give more pairs, or files of their "
        "own for validation and test"
    )


def test_a_corpus_with_nothing_to_validate_on_is_not_called_empty(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left"), b=numbered("right"))
    with pytest.raises(
        DragomanError,
        match=r"of 100 pairs in its train split none is held out to validate on \(validation_share = 0,",
    ):
        load(tmp_path, PARALLEL + "validation_share = 0")
    (tmp_path / "short.txt").write_text("ab")
    with pytest.raises(
        DragomanError, match=r"of 1 documents in its train split none is held out to validate on"
    ):
        load(tmp_path, 'kind = "text"\ntrain = "short.txt"', task="generation")
