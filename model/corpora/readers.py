"""Readers of corpora in files: parallel text, TSV, JSON Lines, plain text; all UTF-8, plain or .gz."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from model.corpora.corpus import Pair
from model.errors import CorpusError

__all__ = ["read_documents", "read_json_lines", "read_lines", "read_parallel", "read_text", "read_tsv"]


def read_text(path: Path) -> str:
    """The whole of a file, newlines as they are; `.gz` is unpacked, a byte order mark dropped.

    Raises:
        CorpusError: the file is missing, damaged, or not UTF-8.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path}, line {line} is not UTF-8: byte 0x{content[error.start]:02x}") from error


def read_lines(path: Path) -> list[str]:
    """Lines without their ends. Only line feeds end a line: U+2028 and its like stand inside of sentences.

    Raises:
        CorpusError: as `read_text`.
    """
    lines = read_text(path).split("\n")
    if not lines[-1]:
        lines.pop()  # the last line's own end
    return [line.removesuffix("\r") for line in lines]


def read_parallel(source: Path, target: Path) -> list[Pair]:
    """Pairs from two files whose lines are translations of each other.

    Raises:
        CorpusError: the files differ in their number of lines, or as `read_text`.
    """
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise CorpusError(
            f"{source} has {len(sources)} lines and {target} has {len(targets)}: parallel files have as many"
        )
    return [Pair(*pair) for pair in zip(sources, targets, strict=True)]


def read_tsv(path: Path, source_column: int, target_column: int) -> list[Pair]:
    """Pairs from two columns, counted from 0; nothing is quoted.

    Raises:
        CorpusError: a line has too few columns, or as `read_text`.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) <= max(source_column, target_column):
            raise CorpusError(
                f"{path}, line {number} has {len(columns)} columns; "
                f"columns {source_column} and {target_column} (from 0) are wanted"
            )
        pairs.append(Pair(columns[source_column], columns[target_column]))
    return pairs


def read_json_lines(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The named fields, all strings, of each line's object; blank lines are passed over.

    Raises:
        CorpusError: a line is no JSON object or lacks a field, or as `read_text`.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{path}, line {number} is no JSON object but {line.strip()[:40]!r}")
        for field in fields:
            if not isinstance(record.get(field), str):
                raise CorpusError(
                    f"{path}, line {number}: {field!r} is "
                    + (f"{record[field]!r}, not a text" if field in record else "missing")
                )
        yield tuple(record[field] for field in fields)


def read_documents(folder: Path, pattern: str) -> list[str]:
    """The content of each file that `pattern` (a path or a glob, within `folder`) names, in order of path.

    Raises:
        CorpusError: it names no file, or as `read_text`.
    """
    exact = folder / pattern
    paths = [exact] if exact.is_file() else sorted(p for p in folder.glob(pattern) if p.is_file())
    if not paths:
        raise CorpusError(f"no file {pattern} in {folder}")
    return [read_text(path) for path in paths]
