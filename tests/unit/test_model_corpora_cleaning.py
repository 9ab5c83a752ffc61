import json
from collections import Counter
from pathlib import Path

import pytest
from tests.unit.corpus_files import PARALLEL, load, numbered, write

from dragoman.model.corpora import cleaning
from dragoman.model.corpora.cleaning import CutLine, DigestSet, Fault, Reading, clean
from dragoman.model.corpora.corpus import Pair, TrainingFiles, stable_digest
from dragoman.model.corpora.readers import read_documents
from dragoman.model.corpora.report import CorpusReport, Place, Reason, Tally
from dragoman.model.corpora.sources import SourceFile
from dragoman.model.errors import CorpusError

PLACE = Place("file", 1)


def test_dirt_is_left_out_or_mended_and_counted(tmp_path: Path) -> None:
    good = numbered("left")
    (tmp_path / "a").write_bytes(
        good.encode() + b"G\xfcte\n" + b"\n" + b"bell\x07 and \x1b[1m\n" + b"left 5\n" + b"x" * 51 + b"\nok\n"
    )
    write(tmp_path, b=numbered("right") + "Kindness\nnothing\nring\nright 5\nlong\n" + "\x00\n")
    corpus = load(tmp_path, PARALLEL + "max_line_bytes = 50\n")
    everything = [*corpus.train, *corpus.validation, *corpus.test]
    expected = [Pair(f"left {n}", f"right {n}") for n in range(100)]
    expected += [Pair("left 5", "right 5"), Pair("bell and [1m", "ring")]
    assert Counter(everything) == Counter(expected)
    [line] = corpus.report.lines()
    assert line == (
        "left out 4 of 106 pairs: 1 not UTF-8 (first: a, line 101: byte 0xfc), 2 empty (first: a, line 102), "
        "1 over max_line_bytes (first: a, line 105: over 50 bytes); "
        "control characters or special spaces cleaned in 1 pair; 1 duplicate (kept)"
    )
    assert load(tmp_path, PARALLEL + "max_line_bytes = 51\n").report.num_kept == 103


def test_duplicates_are_dropped_when_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left") * 3, b=numbered("right", 50) * 4 + numbered("other"))
    kept = load(tmp_path, PARALLEL)
    dropped = load(tmp_path, PARALLEL + "drop_duplicates = true\n")
    pairs = [Pair(f"left {n}", f"right {n % 50}") for n in range(100)] * 2
    pairs += [Pair(f"left {n}", f"other {n}") for n in range(100)]
    assert Counter([*kept.train, *kept.validation, *kept.test]) == Counter(pairs)
    assert Counter([*dropped.train, *dropped.validation, *dropped.test]) == Counter(set(pairs))
    assert len(list(dropped.train)) == len(dropped.train)
    assert kept.report.lines() == ["100 duplicates (kept)"]
    assert dropped.report.left_out == {Reason.DUPLICATE: 100}


def test_a_clean_corpus_has_nothing_to_say(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left"), b=numbered("right"))
    assert load(tmp_path, PARALLEL).report.lines() == []
    assert CorpusReport().lines() == []


def test_duplicates_are_looked_for_among_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning.DigestSet.__init__, "__defaults__", (3,))
    for texts, expected in (("abcabc", None), ("abcd", 3), ("abcdda", 3)):
        tally = Tally()
        assert list(clean([(PLACE, text) for text in texts], tally, drop_duplicates=False)) == list(texts)
        assert tally.num_searched == expected
    assert tally.num_duplicates == 1, "the second d is not known, the second a is"
    assert tally.report("documents").lines() == [
        "1 duplicate (kept); duplicates were looked for among the first 3 different documents only"
    ]


def test_a_digest_set_is_a_set() -> None:
    digests = [stable_digest(str(n)) for n in range(5_000)] + [0, 1 << 63, 2**64 - 1]
    remembered = DigestSet()
    assert not any(remembered.add(digest) for digest in digests)
    assert all(remembered.add(digest) for digest in digests)
    assert not remembered.add(12345)
    assert len(remembered) == len(digests) + 1


def test_lines_are_cut_out_of_documents_that_stay(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfone\r\n\xfftwo\nthree\x00\n" + b"y" * 11 + b"\nfour")
    (tmp_path / "b.md").write_bytes(b"\n \n")
    files = [SourceFile(tmp_path / name, name) for name in ("a.md", "b.md")]
    tally = Tally()
    assert list(clean(read_documents(files, 10), tally, drop_duplicates=False)) == ["one\nthree\nfour"]
    [line] = tally.report("documents").lines()
    assert line == (
        "left out 1 of 2 documents: 1 empty (first: b.md, line 1); "
        "cut 2 lines out of documents: 1 not UTF-8 (first: a.md, line 2: byte 0xff), "
        "1 over max_line_bytes (first: a.md, line 4: over 10 bytes); "
        "control characters or special spaces cleaned in 1 document"
    )


def test_a_huge_file_is_several_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragoman.model.corpora.readers.MAX_DOCUMENT_CHARACTERS", 30)
    text = "".join(f"line {n}\n" for n in range(20))
    (tmp_path / "a").write_text(text)
    files = [SourceFile(tmp_path / "a", "a")]
    documents = [document for _, document in read_documents(files, 100)]
    assert "".join(map(str, documents)) == text
    assert all(len(str(document)) <= 30 and str(document).endswith("\n") for document in documents)


def test_an_endless_line_is_passed_over_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 300_000 + b"\ngood\n" + b"y" * 300_000)
    files = [SourceFile(tmp_path / "a", "a")]
    readings = [reading for _, reading in read_documents(files, 100)]
    assert [type(reading) for reading in readings] == [CutLine, CutLine, str]
    assert readings[-1] == "good\n"


def test_nothing_left_gives_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("grün\n\n \n".encode("latin-1"))
    write(tmp_path, b="green\nblue\nthird\n")
    with pytest.raises(CorpusError) as caught:
        load(tmp_path, PARALLEL)
    assert str(caught.value) == (
        "corpus 'mine' is empty: of 3 pairs in a and b, its train split, none is left; "
        "1 not UTF-8 (first: a, line 1: byte 0xfc), 2 empty (first: a, line 2)"
    )


def test_reports_add_up() -> None:
    first, second = Tally(num_read=5), Tally(num_read=7, num_mended=1, num_searched=9)
    first.leave_out(Reason.EMPTY, Place("train", 3))
    second.leave_out(Reason.EMPTY, Place("test", 4))
    second.cut_line(Reason.TOO_LONG, Place("test", 5, "row"))
    total = CorpusReport("pairs") + first.report("pairs") + second.report("pairs")
    assert (total.num_read, total.num_kept, total.num_mended, total.num_searched) == (12, 10, 1, 9)
    assert total.left_out == {Reason.EMPTY: 2}
    assert total.first == {Reason.EMPTY: "train, line 3", Reason.TOO_LONG: "test, row 5"}


def test_faults_are_counted_as_read() -> None:
    tally = Tally()
    readings: list[Reading[str]] = [(PLACE, Fault(Reason.MALFORMED, "no JSON")), (PLACE, "text")]
    assert list(clean(readings, tally, drop_duplicates=False)) == ["text"]
    assert (tally.num_read, tally.left_out) == (2, {Reason.MALFORMED: 1})


def test_training_files_are_read_anew(tmp_path: Path) -> None:
    write(tmp_path, data="".join(json.dumps({"source": f"s{n}", "target": "t"}) + "\n" for n in range(50)))
    corpus = load(tmp_path, 'kind = "jsonl"\ntrain = "data"\n')
    assert isinstance(corpus.train, TrainingFiles)
    once = list(corpus.train)
    assert once == list(corpus.train)
    assert len(once) == len(corpus.train) == 48
