import gc
import gzip
import io
import json
import lzma
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.unit.corpus_files import PARALLEL, load, numbered, write

from dragoman.common.errors import UsageError
from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.report import Reason
from dragoman.model.errors import CorpusError

PARQUET = 'kind = "parquet"\ntrain = "data.parquet"\n'
TSV = "".join(f"source {n}\ttarget {n}\n" for n in range(60)).encode()
PAIRS = {Pair(f"source {n}", f"target {n}") for n in range(60)}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bytes], None]:
    """Gives the test's process a standard input; temporary files go to a folder `spool`."""
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))

    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def write_parquet(path: Path, **columns: pa.Array) -> None:
    parquet.write_table(pa.table(columns), path, row_group_size=25)


def test_parquet_for_both_tasks(tmp_path: Path) -> None:
    numbers = range(3_000)  # several batches
    write_parquet(
        tmp_path / "data.parquet",
        id=pa.array(numbers),
        source=pa.array([f"s {n}" for n in numbers], pa.large_string()),
        target=pa.array([f"t {n % 9}" for n in numbers]).dictionary_encode(),
        text=pa.array([f"document {n}" for n in numbers]),
    )
    pairs = load(tmp_path, PARQUET)
    everything = [*pairs.train, *pairs.validation, *pairs.test]
    assert set(everything) == {Pair(f"s {n}", f"t {n % 9}") for n in numbers}
    documents = load(tmp_path, PARQUET, task="generation")
    assert len({*documents.train, *documents.validation, *documents.test}) == 3_000
    swapped = load(tmp_path, PARQUET + 'source_column = "text"\ntarget_column = "source"\n')
    assert Pair("document 7", "s 7") in [*swapped.train, *swapped.validation, *swapped.test]


def test_bad_rows_of_parquet_are_left_out(tmp_path: Path) -> None:
    good = [f"s {n}".encode() for n in range(60)]
    cells = pa.array([*good, None, b"\xff", b"", b"x" * 101]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(cells), cells.buffers())  # unchecked, as writers may be
    write_parquet(tmp_path / "data.parquet", source=text, target=pa.array(["t"] * len(cells)))
    corpus = load(tmp_path, PARQUET + "max_line_bytes = 100\n")
    assert corpus.report.left_out == {Reason.EMPTY: 2, Reason.NOT_UTF8: 1, Reason.TOO_LONG: 1}
    assert corpus.report.first[Reason.NOT_UTF8] == "data.parquet, row 62: 'source': byte 0xff"
    assert corpus.report.first[Reason.EMPTY] == "data.parquet, row 61: 'source' is null"
    assert corpus.report.num_kept == 60


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"source": ["a"]}, r"data\.parquet has no column 'target'; it has source$"),
        ({"source": ["a"], "target": [1]}, r"data\.parquet: column 'target' holds int64, not text"),
    ],
)
def test_parquet_without_the_columns(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    write_parquet(tmp_path / "data.parquet", **columns)
    with pytest.raises(CorpusError, match=message):
        load(tmp_path, PARQUET)


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(CorpusError, match=r"data\.parquet is not a whole Parquet file: ") as caught:
        load(tmp_path, PARQUET)
    assert "\n" not in str(caught.value)
    with pytest.raises(CorpusError, match=r"no file data\.parquet in "):
        load(tmp_path, PARQUET, data=tmp_path.parent)


def test_several_files_by_a_pattern(tmp_path: Path) -> None:
    for shard in range(3):
        (tmp_path / f"pairs-{shard}.tsv.gz").write_bytes(gzip.compress(numbered(f"{shard}\tx", 40).encode()))
    corpus = load(
        tmp_path, 'kind = "tsv"\ntrain = "pairs-*.tsv.gz"\nvalidation = "pairs-0.tsv.gz"\ntest_share = 0'
    )
    assert [pair.source for pair in corpus.train] == ["0"] * 40 + ["1"] * 40 + ["2"] * 40  # type: ignore[union-attr]
    assert len(corpus.validation) == 40


def test_xz_files_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv.xz").write_bytes(lzma.compress(TSV))
    corpus = load(tmp_path, 'kind = "tsv"\ntrain = "pairs.tsv.xz"\n')
    assert {*corpus.train, *corpus.validation, *corpus.test} == PAIRS


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_standard_input_is_read_several_times_and_leaves_nothing(
    pipe: Callable[[bytes], None], tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    pipe(pack(TSV))
    corpus = load(tmp_path, 'kind = "tsv"\ntrain = "-"\n')
    assert set(corpus.train) == set(corpus.train)
    assert {*corpus.train, *corpus.validation, *corpus.test} == PAIRS
    assert len(list((tmp_path / "spool").iterdir())) == 1
    del corpus
    gc.collect()
    assert list((tmp_path / "spool").iterdir()) == []


def test_standard_input_of_every_kind(pipe: Callable[[bytes], None], tmp_path: Path) -> None:
    pipe(b"".join(json.dumps({"text": f"d {n}"}).encode() + b"\n" for n in range(60)))
    documents = load(tmp_path, 'kind = "jsonl"\ntrain = "-"\n', task="generation")
    pipe(b"".join(b"d %d\n" % n for n in range(60)))
    lines = load(tmp_path, 'kind = "text"\ntrain = "-"\n', task="generation")
    assert list(lines.train) == list(documents.train)
    assert lines.test == documents.test
    write(tmp_path, b=numbered("right"))
    pipe(numbered("left").encode())
    parallel = load(tmp_path, PARALLEL.replace('"a"', '"-"'))
    assert Pair("left 5", "right 5") in [*parallel.train, *parallel.validation, *parallel.test]
    write_parquet(tmp_path / "data.parquet", text=pa.array([f"d {n}" for n in range(60)]))
    pipe((tmp_path / "data.parquet").read_bytes())
    table = load(tmp_path, 'kind = "parquet"\ntrain = "-"\n', task="generation")
    assert list(table.train) == list(documents.train)


def test_a_bad_line_of_standard_input_is_named(pipe: Callable[[bytes], None], tmp_path: Path) -> None:
    pipe(TSV + b"\xff\n")
    corpus = load(tmp_path, 'kind = "tsv"\ntrain = "-"\n')
    assert corpus.report.first[Reason.NOT_UTF8] == "standard input, line 61: byte 0xff"


def test_only_one_file_is_standard_input(pipe: Callable[[bytes], None], tmp_path: Path) -> None:
    pipe(TSV)
    with pytest.raises(UsageError, match='only one file of a corpus can be "-"'):
        load(tmp_path, 'kind = "tsv"\ntrain = "-"\ntest = "-"\n')


def test_a_terminal_is_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(
        UsageError, match=r"which is a terminal: pipe it in, as in `dragoman COMMAND \.\.\. < FILE`"
    ):
        load(tmp_path, 'kind = "tsv"\ntrain = "-"\n')
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="which is closed"):
        load(tmp_path, 'kind = "tsv"\ntrain = "-"\n')


def test_an_empty_standard_input_is_an_empty_corpus(pipe: Callable[[bytes], None], tmp_path: Path) -> None:
    pipe(b"")
    with pytest.raises(
        CorpusError, match=r"corpus 'mine' is empty: of 0 pairs in -, .*none is left; no lines"
    ):
        load(tmp_path, 'kind = "tsv"\ntrain = "-"\n')
