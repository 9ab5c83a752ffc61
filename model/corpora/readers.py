"""Readers of corpora in files: parallel text, TSV, JSON Lines, documents; all UTF-8, plain or packed.

Each gives its examples one by one, in constant memory, and for what cannot be one says why and where.
"""

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

from dragoman.model.corpora.cleaning import CutLine, Fault, Reading
from dragoman.model.corpora.column_names import is_header
from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.report import Place, Reason
from dragoman.model.corpora.sources import SourceFile
from dragoman.model.errors import CorpusError

__all__ = [
    "MAX_DOCUMENT_CHARACTERS",
    "make_pairs",
    "make_texts",
    "read_documents",
    "read_json_lines",
    "read_line_documents",
    "read_parallel",
    "read_tsv",
]

# A longer file is several documents, cut where a line ends: a document is held in memory, and encoding it
# takes a hundred bytes a token.
MAX_DOCUMENT_CHARACTERS: Final = 1 << 21

_DRAIN_BYTES: Final = 1 << 16

Fields = Iterable[tuple[Place, tuple[str, ...] | Fault]]
"""The columns or fields of each record."""


def read_parallel(source: SourceFile, target: SourceFile, max_line_bytes: int) -> Iterator[Reading[Pair]]:
    """Pairs from two files whose lines are translations of each other.

    Raises:
        CorpusError: the files differ in their number of lines, or as `SourceFile.open`.
    """
    sources, targets = _lines(source, max_line_bytes), _lines(target, max_line_bytes)
    counts = [0, 0]
    for left, right in itertools.zip_longest(sources, targets):
        counts[0] += left is not None
        counts[1] += right is not None
        if left is None or right is None:
            continue  # to the end, for the message
        wrong = left if isinstance(left[1], Fault) else right
        if isinstance(wrong[1], Fault):
            yield wrong[0], wrong[1]
        elif isinstance(left[1], str):
            yield left[0], Pair(left[1], wrong[1])
    if counts[0] != counts[1]:
        raise CorpusError(
            f"{source} has {counts[0]} lines and {target} has {counts[1]}: parallel files have as many"
        )


def read_tsv(
    file: SourceFile, columns: Sequence[int], max_line_bytes: int, *, header: bool | Literal["auto"] = False
) -> Fields:
    """The columns of these numbers, from 0, of each line; nothing is quoted.

    With `header` the first line is left out; with "auto" it is where the wanted columns of it hold names of columns.

    Raises:
        CorpusError: as `SourceFile.open`.
    """
    for place, line in _lines(file, max_line_bytes):
        if isinstance(line, Fault):
            yield place, line
            continue
        cells = line.split("\t")
        if place.number == 1 and _is_header(cells, columns, header):
            advice = "; corpus.header = false keeps it" if header == "auto" else ""
            yield place, Fault(Reason.HEADER, " and ".join(map(repr, _pick(cells, columns))) + advice)
        elif not line.strip():
            yield place, Fault(Reason.EMPTY)
        elif len(cells) <= max(columns):
            wanted = " and ".join(map(str, columns))
            plural = "" if len(cells) == 1 else "s"
            fault = f"{len(cells)} column{plural}, where columns {wanted} (from 0) are wanted"
            yield place, Fault(Reason.MALFORMED, fault)
        else:
            yield place, _pick(cells, columns)


def read_json_lines(file: SourceFile, fields: Sequence[str], max_line_bytes: int) -> Fields:
    """The named fields, all strings, of each line's object.

    Raises:
        CorpusError: as `SourceFile.open`.
    """
    for place, line in _lines(file, max_line_bytes):
        yield place, line if isinstance(line, Fault) else _parse_json(line, fields)


def make_pairs(records: Fields) -> Iterator[Reading[Pair]]:
    """Pairs of records of two fields."""
    for place, record in records:
        yield place, record if isinstance(record, Fault) else Pair(*record)


def make_texts(records: Fields) -> Iterator[Reading[str]]:
    """Documents of records of one field."""
    for place, record in records:
        yield place, record if isinstance(record, Fault) else record[0]


def read_documents(files: Iterable[SourceFile], max_line_bytes: int) -> Iterator[Reading[str]]:
    """The content of each file, the ends of its lines brought to line feeds; one file at a time.

    A file of more than `MAX_DOCUMENT_CHARACTERS` is several documents.

    Raises:
        CorpusError: as `SourceFile.open`.
    """
    for file in files:
        start, parts, size = Place(file.name, 1), list[str](), 0
        for place, line in _lines(file, max_line_bytes, keep_ends=True):
            if isinstance(line, Fault):
                yield place, CutLine(*line)
                continue
            if size + len(line) > MAX_DOCUMENT_CHARACTERS and parts:
                yield start, "".join(parts)
                start, parts, size = place, [], 0
            parts.append(line)
            size += len(line)
        yield start, "".join(parts)


def read_line_documents(file: SourceFile, max_line_bytes: int) -> Iterator[Reading[str]]:
    """Each line of a file as a document.

    Raises:
        CorpusError: as `SourceFile.open`.
    """
    yield from _lines(file, max_line_bytes)


def _lines(
    file: SourceFile, max_bytes: int, *, keep_ends: bool = False
) -> Iterator[tuple[Place, str | Fault]]:
    """The text of each line, or what is wrong with it. A byte order mark is dropped.

    Only line feeds end a line, with or without a carriage return before: U+2028 and its like stand inside
    of sentences.
    """
    end = "\n" if keep_ends else ""
    with file.open() as stream:
        for number in itertools.count(1):
            raw = stream.readline(max_bytes + len(b"\r\n"))
            if not raw:
                return
            has_end = raw.endswith(b"\n")
            line = raw.removesuffix(b"\n").removesuffix(b"\r") if has_end else raw
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            place = Place(file.name, number)
            if len(line) > max_bytes:
                while raw and not raw.endswith(b"\n"):
                    raw = stream.readline(_DRAIN_BYTES)
                yield place, Fault(Reason.TOO_LONG, f"over {max_bytes:,} bytes")
                continue
            try:
                yield place, line.decode() + (end if has_end else "")
            except UnicodeDecodeError as error:
                yield place, Fault(Reason.NOT_UTF8, f"byte 0x{line[error.start]:02x}")


def _is_header(cells: Sequence[str], columns: Sequence[int], header: bool | Literal["auto"]) -> bool:
    return is_header(_pick(cells, columns)) if header == "auto" else header


def _pick(cells: Sequence[str], columns: Sequence[int]) -> tuple[str, ...]:
    """The cells of these numbers, as far as there are so many."""
    return tuple(cells[column] for column in columns if column < len(cells))


def _parse_json(line: str, fields: Sequence[str]) -> tuple[str, ...] | Fault:
    if not line.strip():
        return Fault(Reason.EMPTY)
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return Fault(Reason.MALFORMED, f"not JSON: {error}")
    if not isinstance(record, dict):
        return Fault(Reason.MALFORMED, f"no JSON object but {line.strip()[:40]!r}")
    for field in fields:
        if not isinstance(record.get(field), str):
            found = f"{str(record[field])[:40]!r}, not a text" if field in record else "missing"
            return Fault(Reason.MALFORMED, f"{field!r} is {found}")
    return tuple(record[field] for field in fields)
