import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.corpus_files import PARALLEL, load, numbered, write

from dragoman.common.errors import DragomanError
from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.holding_out import cut_ends
from dragoman.model.corpora.report import Reason
from dragoman.model.errors import CorpusError


def test_parallel_files_keep_their_pairs_together(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left"), b=numbered("right"))
    corpus = load(tmp_path, PARALLEL)
    everything = [*corpus.train, *corpus.validation, *corpus.test]
    assert sorted(everything) == sorted(Pair(f"left {n}", f"right {n}") for n in range(100))
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (96, 2, 2)


def test_gz_files_are_unpacked_and_splits_can_have_their_own(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("valid", 3), ("test", 2)):
        for side in ("de", "en"):
            content = numbered(f"{name} {side}", count).encode()
            (tmp_path / f"{name}.{side}.gz").write_bytes(gzip.compress(content))
    corpus = load(
        tmp_path,
        'kind = "parallel"\n'
        'train = { source = "train.de.gz", target = "train.en.gz" }\n'
        'validation = { source = "valid.de.gz", target = "valid.en.gz" }\n'
        'test = { source = "test.de.gz", target = "test.en.gz" }\n',
    )
    assert next(iter(corpus.train)) == Pair("train de 0", "train en 0")
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (10, 3, 2)


def test_data_takes_the_place_of_the_recipes_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, a=numbered("left"), b=numbered("right"))
    assert load(tmp_path, PARALLEL, data=elsewhere).train


def test_unequal_files_are_named_with_both_counts(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left", 5), b=numbered("right", 7))
    with pytest.raises(CorpusError, match=r"a has 5 lines and .*b has 7"):
        load(tmp_path, PARALLEL)


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    write(tmp_path, a="one\u2028still one\r\n" + numbered("two\v\u2029"), b=numbered("line", 101))
    corpus = load(tmp_path, PARALLEL)
    everything = [*corpus.train, *corpus.validation, *corpus.test]
    assert Pair("one still one", "line 0") in everything
    assert Pair("two   99", "line 100") in everything, "a vertical tab is white space"


def test_pairs_with_an_empty_side_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left") + "\n  \nx\n", b=numbered("right") + "y\nz\n\n")
    corpus = load(tmp_path, PARALLEL)
    assert corpus.report.left_out == {Reason.EMPTY: 3}
    assert (corpus.report.num_read, corpus.report.num_kept) == (103, 100)
    assert len([*corpus.train, *corpus.validation, *corpus.test]) == 100


def test_repeated_sources_stay_on_one_side(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left", 50) * 4, b=numbered("right", 200))
    corpus = load(tmp_path, PARALLEL)
    splits = [{pair[0] for pair in split} for split in (corpus.train, corpus.validation, corpus.test)]
    assert sum(map(len, splits)) == 50
    assert all(splits)


def test_tsv(tmp_path: Path) -> None:
    rows = "".join(f"{n}\tsource {n}\ttarget {n}\n" for n in range(60))
    write(tmp_path, pairs=rows)
    section = 'kind = "tsv"\ntrain = "pairs"\nsource_column = 1\ntarget_column = 2\n'
    corpus = load(tmp_path, section)
    assert Pair("source 7", "target 7") in [*corpus.train, *corpus.validation, *corpus.test]
    write(tmp_path, pairs=rows + "too\tfew\n")
    [line] = load(tmp_path, section).report.lines()
    problem = "pairs, line 61: 2 columns, where columns 1 and 2 (from 0) are wanted"
    assert line == f"left out 1 of 61 pairs: 1 malformed (first: {problem})"


def test_json_lines_for_both_tasks(tmp_path: Path) -> None:
    records = [{"source": f"s\n{n}", "target": f"t{n}", "text": f"document {n}"} for n in range(60)]
    write(tmp_path, data="\n".join(map(json.dumps, records)) + "\n\n")
    pairs = load(tmp_path, 'kind = "jsonl"\ntrain = "data"\n')
    assert Pair("s\n7", "t7") in [*pairs.train, *pairs.validation, *pairs.test]
    documents = load(tmp_path, 'kind = "jsonl"\ntrain = "data"\n', task="generation")
    assert len({*documents.train, *documents.validation, *documents.test}) == 60


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"1 malformed (first: data, line 61: not JSON: Expecting property name"),
        ("[1]", r"1 malformed (first: data, line 61: no JSON object but '[1]')"),
        ("[" * 100_000, r"1 malformed (first: data, line 61: not JSON: "),
        ('{"source": "x"}', r"1 malformed (first: data, line 61: 'target' is missing)"),
        ('{"source": "x", "target": 5}', r"1 malformed (first: data, line 61: 'target' is '5', not a text)"),
        (
            '{"source": "x", "target": "\\ud800"}',
            r"1 not UTF-8 (first: data, line 61: half of a surrogate pair)",
        ),
    ],
)
def test_a_wrong_json_line_is_left_out_and_named(tmp_path: Path, line: str, message: str) -> None:
    good = "".join(json.dumps({"source": f"s{n}", "target": f"t{n}"}) + "\n" for n in range(60))
    write(tmp_path, data=good + line + "\n")
    corpus = load(tmp_path, 'kind = "jsonl"\ntrain = "data"\n')
    assert corpus.report.lines()[0].startswith(f"left out 1 of 61 pairs: {message}")
    assert len([*corpus.train, *corpus.validation, *corpus.test]) == 60


def test_text_files_are_documents(tmp_path: Path) -> None:
    for name in ("x/one.md", "x/y/two.md", "x/three.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.stem} " * 100)
    corpus = load(tmp_path, 'kind = "text"\ntrain = "x/**/*.md"\n', task="generation")
    assert [str(document)[:3] for document in corpus.train] == ["one", "two"]
    assert sum(map(len, [*corpus.train, *corpus.validation, *corpus.test])) == 800
    single = load(tmp_path, 'kind = "text"\ntrain = "x/three.txt"\n', task="generation")
    assert "".join(map(str, [*single.train, *single.validation, *single.test])) == "three " * 100


@given(document=st.text(min_size=1), validation=st.floats(0, 0.49), test=st.floats(0, 0.49))
def test_held_out_ends_put_together_are_the_document(document: str, validation: float, test: float) -> None:
    document = "".join(document.split()) + "."  # a part of nothing but white space is no example
    parts = cut_ends(document, validation, test)
    assert "".join(parts) == document
    assert len(parts[1]) <= len(document) * validation + 1


@pytest.mark.parametrize(
    ("files", "corpus", "message"),
    [
        ({"a": "", "b": ""}, PARALLEL, "corpus 'mine' is empty"),
        ({"a": "\n\n", "b": "\n\n"}, PARALLEL, "corpus 'mine' is empty"),
        (
            {"a": "one\n", "b": "eins\n"},
            PARALLEL,
            "'mine': of 1 pairs in its train split none is left to train on",
        ),
        ({"a": "one\n"}, PARALLEL, r"cannot read .*b: No such file"),
        (
            {"pairs": "\n{\n\n"},
            'kind = "jsonl"\ntrain = "pairs"',
            r"'mine' is empty: of 3 pairs in pairs, .* 2 empty .*, 1 malformed \(first: pairs, line 2: not JSON: E",
        ),
        ({"pairs": "\t\n"}, 'kind = "tsv"\ntrain = "pairs"', "corpus 'mine' is empty: of 1 pairs in pairs"),
    ],
)
def test_empty_and_missing_files(tmp_path: Path, files: dict[str, str], corpus: str, message: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(CorpusError, match=message) as caught:
        load(tmp_path, corpus)
    assert "\n" not in str(caught.value)


def test_no_text_file_matches(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no file \*\.md in"):
        load(tmp_path, 'kind = "text"\ntrain = "*.md"', task="generation")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"there is no folder .*nowhere"):
        load(tmp_path, PARALLEL, data=tmp_path / "nowhere")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    section = PARALLEL.replace('"b"', '"b.gz"')
    write(tmp_path, a="ok\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"ok\n" * 1_000)[:20])
    with pytest.raises(CorpusError, match=r"b\.gz is not a whole gzip file"):
        load(tmp_path, section)
    (tmp_path / "b.gz").write_bytes(b"plain text")
    with pytest.raises(CorpusError, match=r"b\.gz is not a whole gzip file"):
        load(tmp_path, section)
    (tmp_path / "b.xz").write_bytes(lzma.compress(b"ok\n" * 1_000)[:40])
    with pytest.raises(CorpusError, match=r"b\.xz is not a whole xz file"):
        load(tmp_path, section.replace("gz", "xz"))


def test_shares_must_leave_something(tmp_path: Path) -> None:
    with pytest.raises(DragomanError, match=r"nothing is left to train on: validation_share 0\.6"):
        load(tmp_path, PARALLEL + "validation_share = 0.6\ntest_share = 0.4")
