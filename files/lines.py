"""JSON Lines and plain text, compressed or not."""

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import pyarrow as pa

from dragoman.files.answers import AnswerRow, Outcome, Refusal
from dragoman.files.blocks import BLOCK_BYTES, BLOCK_ROWS, BadRow, RowBlock, RowText
from dragoman.files.columns import AnswerColumns
from dragoman.files.storage import InputFile, named_errors

__all__ = ["JsonLines", "TextLines"]

MAX_LINE_BYTES = 16 * 1024 * 1024
_CODECS = {"": None, ".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN_CHARACTERS = 1000
_SCORE_DIGITS = 6


class _Lines:
    """Files of lines, packed or not, which are read from their beginning."""

    unit, first_number = "line", 1

    def __init__(self, kinds: Sequence[str], rows_per_part: int) -> None:
        self.suffixes = tuple(kind + packed for kind in kinds for packed in _CODECS)
        self._rows_per_part = rows_per_part

    def check(self, file: InputFile) -> None:
        """Nothing: a line says what it is when it is read."""

    def read(self, file: InputFile, wants: Callable[[int], bool]) -> Iterator[RowBlock]:
        """As `Format.read`."""
        lines: list[bytes] = []
        part = first = size = 0
        wanted = wants(0)
        with named_errors(file.name), file.store.open_input_file(file.path) as packed:
            codec = _codec(file)
            # A stream of pyarrow is a raw stream of `io`, but does not say so.
            unpacked: Any = packed if codec is None else pa.CompressedInputStream(packed, codec)
            stream = io.BufferedReader(unpacked, 1 << 20)
            for number, line in enumerate(_read_lines(stream)):
                if number == (part + 1) * self._rows_per_part:
                    if wanted:
                        yield self._block(file, part, first, lines, packed.tell(), ends_part=True)
                    part, first, size, lines = part + 1, number, 0, []
                    wanted = wants(part)
                if not wanted:
                    continue
                if len(lines) == BLOCK_ROWS or size > BLOCK_BYTES:
                    yield self._block(file, part, first, lines, packed.tell(), ends_part=False)
                    first, size, lines = number, 0, []
                lines.append(line)
                size += len(line)
            if wanted:
                yield self._block(file, part, first, lines, file.num_bytes, ends_part=True)

    def _block(
        self, file: InputFile, part: int, first: int, lines: list[bytes], num_bytes: int, *, ends_part: bool
    ) -> RowBlock:
        rows = [self._row(line, f"{file.name}, line {first + at + 1}") for at, line in enumerate(lines)]
        return RowBlock(
            file=file,
            part=part,
            first=first,
            texts=[text for text, _ in rows],
            kept=[kept for _, kept in rows],
            num_bytes=num_bytes,
            ends_part=ends_part,
        )

    def _row(self, line: bytes, where: str) -> tuple[RowText, str]:
        """A line's text, and the line."""
        raise NotImplementedError

    def write(self, block: RowBlock, stream: Any) -> "_LineWriter":
        """As `Format.write`."""
        codec = _codec(block.file)
        return _LineWriter(stream if codec is None else pa.CompressedOutputStream(stream, codec), self.line)

    def line(self, kept: str, outcome: Outcome) -> str:
        """The line that a row becomes, with its end; "" for none."""
        raise NotImplementedError


class _LineWriter:
    """Writes lines."""

    def __init__(self, stream: Any, line: Callable[[str, Outcome], str]) -> None:
        self._stream = stream
        self._line = line

    def write(self, block: RowBlock, outcomes: Sequence[Outcome]) -> None:
        """As `PartWriter.write`."""
        self._stream.write("".join(map(self._line, block.kept, outcomes)).encode())

    def close(self) -> None:
        """As `PartWriter.close`."""
        if isinstance(self._stream, pa.CompressedOutputStream):
            self._stream.close()


class TextLines(_Lines):
    """A text in each line; its answer is the same line of the part."""

    def __init__(self, rows_per_part: int) -> None:
        """Parts of `rows_per_part` lines."""
        super().__init__((".txt",), rows_per_part)

    def _row(self, line: bytes, where: str) -> tuple[RowText, str]:  # noqa: ARG002  JSON Lines has it
        text = _decoded(line)
        return text, ""

    def line(self, kept: str, outcome: Outcome) -> str:  # noqa: ARG002
        """The answer as one line. A refused row is an empty line, so that lines keep their numbers."""
        return (" ".join(outcome.best.text.splitlines()) if isinstance(outcome, AnswerRow) else "") + "\n"


class JsonLines(_Lines):
    """An object in each line. The answer's keys are added to it; the rest of the line stays as it is, to the byte."""

    def __init__(self, rows_per_part: int, input_column: str, columns: AnswerColumns) -> None:
        """Parts of `rows_per_part` lines, whose texts are under the key `input_column`."""
        super().__init__((".jsonl", ".ndjson"), rows_per_part)
        self._input_column = input_column
        self._columns = columns

    def _row(self, line: bytes, where: str) -> tuple[RowText, str]:
        decoded = _decoded(line)
        if isinstance(decoded, BadRow):
            return decoded, ""
        decoded = decoded.strip()
        if not decoded:
            return None, decoded  # no row at all: nothing is written of it
        try:
            record = json.loads(decoded, parse_constant=_refuse_constant)
            text = _text_of(record, self._input_column)
        except (json.JSONDecodeError, RecursionError) as error:
            return BadRow(f"is not JSON: {error}", decoded[:_SHOWN_CHARACTERS]), decoded
        except ValueError as error:
            return BadRow(str(error), decoded[:_SHOWN_CHARACTERS]), decoded
        self._columns.check_free(list(record), where)
        return text, decoded

    def line(self, kept: str, outcome: Outcome) -> str:
        """The line with the answer's keys before its end."""
        if not kept or isinstance(outcome, Refusal):
            return ""
        added = dict.fromkeys(self._columns.names)
        if outcome is not None:
            best = outcome.best
            hypotheses = [
                {
                    **each._asdict(),
                    "score": _short(each.score),
                    "log_probability": _short(each.log_probability),
                }
                for each in outcome.hypotheses
            ]
            values = (best.text, _short(best.score), best.finish_reason, hypotheses)
            added = dict(zip(self._columns.names, values, strict=False))
        return f"{kept[:-1].rstrip()}, {json.dumps(added, ensure_ascii=False)[1:]}\n"


def _codec(file: InputFile) -> str | None:
    return _CODECS.get(file.place.suffix)


def _read_lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """Lines without their ends; of a line that is too long the beginning, which is longer than `MAX_LINE_BYTES`."""
    line = stream.readline(MAX_LINE_BYTES + 2).removeprefix(_BYTE_ORDER_MARK)
    while line:
        end = line
        while not end.endswith(b"\n") and (end := stream.readline(MAX_LINE_BYTES)):
            line = line if len(line) > MAX_LINE_BYTES else line + end
        yield line.removesuffix(b"\n").removesuffix(b"\r")
        line = stream.readline(MAX_LINE_BYTES + 2)


def _decoded(line: bytes) -> str | BadRow:
    if len(line) > MAX_LINE_BYTES:
        return BadRow(
            f"is longer than {MAX_LINE_BYTES:,} bytes", line[:_SHOWN_CHARACTERS].decode(errors="replace")
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        shown = line[:_SHOWN_CHARACTERS].decode(errors="backslashreplace")
        return BadRow(f"is not UTF-8: byte 0x{line[error.start]:02x}", shown)


def _text_of(record: Any, key: str) -> str | None:
    """The text under a key.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004  a value of the user's
    if key not in record:
        raise ValueError(f"has no key {key!r}")
    text = record[key]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{key!r} is {json.dumps(text)[:40]}, not a text")
    if text is not None and not text.isascii() and _SURROGATE.search(text):
        raise ValueError(f"{key!r} holds half of a surrogate pair")
    return text


def _short(number: float) -> float:
    return round(number, _SCORE_DIGITS)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
