"""Parquet, JSON Lines and text: what is read, what is written, what is kept aside."""

import bz2
import datetime as dt
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.played_pool import answer, contents, play_pool

from dragoman.common.errors import OperationError, UsageError
from dragoman.files import lines


@pytest.fixture(autouse=True)
def _played(monkeypatch: pytest.MonkeyPatch) -> None:
    play_pool(monkeypatch)


def bad_rows(out: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "_bad" / name).read_text().splitlines()]


def test_all_columns_of_parquet_stay_with_their_types(tmp_path: Path) -> None:
    day = dt.date(2024, 3, 3)
    schema = pa.schema(
        [
            pa.field("id", pa.uint16(), nullable=False),
            ("text", pa.large_string()),
            ("kind", pa.dictionary(pa.int8(), pa.string())),
            ("tags", pa.list_(pa.string())),
            ("price", pa.decimal128(10, 2)),
            ("day", pa.date32()),
        ],
        metadata={"from": "here"},
    )
    rows = [
        {"id": n, "text": f"t{n}", "kind": "ab"[n % 2], "tags": ["x"] * n, "price": n, "day": day}
        for n in range(10)
    ]
    rows[3]["text"], rows[5]["text"] = None, "no!"
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet", compression="zstd")
    summary = answer(tmp_path / "a.parquet", out=tmp_path / "out")
    assert (summary.num_rows, summary.num_answered, summary.num_blank, summary.num_bad) == (10, 8, 1, 1)
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [path.name for path in files] == [f"a-0000{n}.parquet" for n in range(3)]
    assert [pq.read_metadata(path).num_rows for path in files] == [4, 3, 2]
    assert pq.read_metadata(files[0]).row_group(0).column(0).compression == "ZSTD"
    written = pq.read_table(files[0])
    assert [written.schema.field(name) for name in schema.names] == list(schema)
    assert written.schema.metadata[b"from"] == b"here"
    expected = [
        {
            **row,
            "translation": row["text"] and str(row["text"]).upper(),
            "translation_score": row["text"] and -0.5,
            "translation_finish_reason": row["text"] and "end_of_sequence",
        }
        for row in rows
        if row["text"] != "no!"
    ]
    assert pa.concat_tables(map(pq.read_table, files)).to_pylist() == expected
    file = str(tmp_path / "a.parquet")
    assert bad_rows(tmp_path / "out", "a-00001.parquet.jsonl") == [
        {"file": file, "row": 5, "reason": "is loud", "text": "no!"}
    ]
    assert list(contents(tmp_path / "out")) == ["_bad/a-00001.parquet.jsonl", *(each.name for each in files)]


def test_parquet_texts_that_are_no_utf8_are_kept_aside(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column, "id": [1, 2, 3]}), tmp_path / "a.parquet")
    answer(tmp_path / "a.parquet", out=tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "a-00000.parquet").column("id").to_pylist() == [1, 3]
    [bad] = bad_rows(tmp_path / "out", "a-00000.parquet.jsonl")
    assert (bad["row"], bad["reason"], bad["text"]) == (1, "'text' is not UTF-8", "\\xff")


def test_an_empty_file_is_answered_by_an_empty_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").touch()
    summary = answer(tmp_path / "a.parquet", tmp_path / "b.txt", out=tmp_path / "out")
    assert (summary.num_parts, summary.num_rows) == (2, 0)
    assert pq.read_table(tmp_path / "out" / "a-00000.parquet").schema.names[:2] == ["text", "translation"]
    assert (tmp_path / "out" / "b-00000.txt").read_bytes() == b""


def test_parts_do_not_depend_on_how_the_file_is_laid_out(tmp_path: Path) -> None:
    table = pa.table({"text": [f"t{n % 7}" for n in range(1000)], "n": range(1000)})
    for name, rows in (("one", 1000), ("few", 333), ("many", 7)):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "a.parquet", row_group_size=rows)
        answer(tmp_path / name / "a.parquet", out=tmp_path / f"{name}-out", rows_per_part=300)
    [one, few, many] = [contents(tmp_path / f"{name}-out") for name in ("one", "few", "many")]
    assert one == few == many
    assert len(one) == 4


@pytest.mark.parametrize("rows_per_part", [1, 299, 300, 1000, 5000])
def test_each_row_is_in_one_part(tmp_path: Path, rows_per_part: int) -> None:
    texts = [f"t{n}" for n in range(20 if rows_per_part == 1 else 1000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=257)
    (tmp_path / "b.txt").write_text("".join(f"{text}\n" for text in texts))
    answer(tmp_path / "a.parquet", tmp_path / "b.txt", out=tmp_path / "out", rows_per_part=rows_per_part)
    out = tmp_path / "out"
    tables = [pq.read_table(path) for path in sorted(out.glob("a-*"))]
    assert all(table.num_rows <= rows_per_part for table in tables)
    found = pa.concat_tables(tables).column("translation").to_pylist()
    assert found == [text.upper() for text in texts]
    assert [line for path in sorted(out.glob("b-*")) for line in path.read_text().splitlines()] == found


def test_a_line_of_json_keeps_every_byte(tmp_path: Path) -> None:
    good = [
        '{"text": "a", "n": 1.0, "big": 12345678901234567890123, "e": 1e400, "x":{"y" : [ 1 ]}}',
        '  {"n": 1.50, "text": "\\u00e4\\ud83d\\ude00"  }  ',
        '{"text": null, "n": 1}',
    ]
    bad = [
        "{",
        "[]",
        '{"n": 1}',
        '{"text": 5}',
        '{"text": "\\ud800"}',
        '{"text": "a", "n": NaN}',
        '{"text": "!"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join([*good, "", *bad]) + "\n")
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"text": "\xff"}')
    summary = answer(tmp_path / "a.jsonl", out=tmp_path / "out", rows_per_part=100)
    assert summary.num_bad == len(bad) + 1
    added = '"translation_score": -0.5, "translation_finish_reason": "end_of_sequence"}'
    none = '"translation": null, "translation_score": null, "translation_finish_reason": null}'
    assert (tmp_path / "out" / "a-00000.jsonl").read_text().splitlines() == [
        f'{good[0][:-1]}, "translation": "A", {added}',
        f'{good[1].strip()[:-1].strip()}, "translation": "Ä😀", {added}',
        f"{good[2][:-1]}, {none}",
    ]
    found = bad_rows(tmp_path / "out", "a-00000.jsonl.jsonl")
    assert [each["line"] for each in found] == list(range(5, 13))
    reasons = [str(each["reason"]) for each in found]
    assert reasons[0].startswith("is not JSON: ")
    assert reasons[1:5] == [
        "is not a JSON object",
        "has no key 'text'",
        "'text' is 5, not a text",
        "'text' holds half of a surrogate pair",
    ]
    assert reasons[5:] == ["NaN is no number of JSON", "is loud", "is not UTF-8: byte 0xff"]


def test_a_line_of_text_keeps_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 10)
    content = b"\xef\xbb\xbfa\r\n\n\xff\n" + b"x" * 25 + b"\n" + b"y" * 10 + b"\nb!\nlast"
    (tmp_path / "a.txt").write_bytes(content)
    answer(tmp_path / "a.txt", out=tmp_path / "out", rows_per_part=100)
    assert (tmp_path / "out" / "a-00000.txt").read_text() == "A\n\n\n\n" + "Y" * 10 + "\n\nLAST\n"
    found = bad_rows(tmp_path / "out", "a-00000.txt.jsonl")
    assert [(each["line"], each["reason"]) for each in found] == [
        (3, "is not UTF-8: byte 0xff"),
        (4, "is longer than 10 bytes"),
        (6, "is loud"),
    ]


def test_packed_files_give_packed_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 9))
    (tmp_path / "b.txt.bz2").write_bytes(bz2.compress(b"a\n" * 9))
    with pa.CompressedOutputStream(str(tmp_path / "c.txt.zst"), "zstd") as stream:
        stream.write(b"a\n" * 9)
    answer(tmp_path, out=tmp_path.with_name("packed-out"))
    out = tmp_path.with_name("packed-out")
    assert len(gzip.decompress((out / "a-00000.jsonl.gz").read_bytes()).splitlines()) == 4
    assert bz2.decompress((out / "b-00002.txt.bz2").read_bytes()) == b"A\n"
    with pa.CompressedInputStream(str(out / "c-00001.txt.zst"), "zstd") as stream:
        assert stream.read() == b"A\n" * 4


def test_a_folder_keeps_its_folders(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in (
        "year=2023/part.txt",
        "year=2024/part.txt",
        "_SUCCESS",
        ".part.txt.crc",
        "_old/x.txt",
        "notes.md",
    ):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("a\n")
    answer(data, out=tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["year=2023/part-00000.txt", "year=2024/part-00000.txt"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"other": ["a"]}, "has no column 'text', only other: name one by --input-column"),
        ({"text": [1]}, ": column 'text' is int64, not text"),
        ({"text": ["a"], "translation_score": [1]}, "has a column 'translation_score' already"),
    ],
)
def test_tables_that_do_not_fit_are_refused_first(
    tmp_path: Path, column: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table(column), tmp_path / "b.parquet")
    with pytest.raises(UsageError) as caught:
        answer(tmp_path / "a.parquet", tmp_path / "b.parquet", out=tmp_path / "out")
    assert str(caught.value).startswith(str(tmp_path / "b.parquet"))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(OperationError, match=r"a\.parquet: "):
        answer(tmp_path / "a.parquet", out=tmp_path / "out")
    whole = gzip.compress(bytes(range(97, 123)) * 1000 + b"\n")
    (tmp_path / "b.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OperationError, match=r"b\.txt\.gz: "):
        answer(tmp_path / "b.txt.gz", out=tmp_path / "out")
    assert not contents(tmp_path / "out")


def test_a_file_that_changes_while_it_is_read_gives_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\nb\n")

    def change(*_: object) -> None:
        with path.open("a") as file:
            file.write("c\n")

    with pytest.raises(OperationError, match="was changed while it was read"):
        answer(path, out=tmp_path / "out", progress=change)
    assert not contents(tmp_path / "out")
