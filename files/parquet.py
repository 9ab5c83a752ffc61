"""Parquet."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dragoman.files.answers import Outcome, Refusal
from dragoman.files.blocks import BLOCK_BYTES, BLOCK_ROWS, BadRow, RowBlock, RowText
from dragoman.files.columns import AnswerColumns, check_text_column, texts_of
from dragoman.files.storage import InputFile, named_errors

__all__ = ["ParquetTables"]

_READ_BLOCKS = 4
_READ_BUFFER_BYTES = 1 << 20
_GROUP_BYTES = 32 * 1024 * 1024
"""Of a row group that is written, by the size of the rows that were read: it is in memory until it is written."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a part has of its file: the schema, the compression, and rows a row group; rows are read by blocks."""

    schema: pa.Schema
    compression: str
    group_rows: int
    block_rows: int


class ParquetTables:
    """Rows with a column of texts. All columns stay as they are, with their types; the answer's are added."""

    suffixes: tuple[str, ...] = (".parquet",)
    unit, first_number = "row", 0

    def __init__(self, rows_per_part: int, input_column: str, columns: AnswerColumns) -> None:
        """Parts of `rows_per_part` rows, whose texts are in `input_column`."""
        self._rows_per_part = rows_per_part
        self._input_column = input_column
        self._columns = columns

    def check(self, file: InputFile) -> None:
        """As `Format.check`."""
        with named_errors(file.name), file.store.open_input_file(file.path) as stream:
            schema = pq.read_schema(stream)
        check_text_column(schema, self._input_column, file.name)
        self._columns.check_free(schema.names, file.name)

    def read(self, file: InputFile, wants: Callable[[int], bool]) -> Iterator[RowBlock]:
        """As `Format.read`."""
        with named_errors(file.name), file.store.open_input_file(file.path) as stream:
            table = pq.ParquetFile(stream, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)
            layout, num_rows = _layout(table, self._rows_per_part), table.metadata.num_rows
            parts = [part for part in range(max(1, math.ceil(num_rows / self._rows_per_part))) if wants(part)]
            for run in _runs(parts):
                yield from self._read_parts(file, table, layout, run)

    def _read_parts(
        self, file: InputFile, table: pq.ParquetFile, layout: _Layout, parts: range
    ) -> Iterator[RowBlock]:
        """The blocks of consecutive parts."""
        size, num_rows = self._rows_per_part, table.metadata.num_rows
        row, end = parts.start * size, min(parts.stop * size, num_rows)
        pieces: list[pa.RecordBatch] = []
        start, block_end = row, _block_end(row, size, end, layout.block_rows)
        if row == end:  # a file without rows
            yield self._block(file, layout, 0, layout.schema.empty_table(), num_rows, ends_part=True)
        for batch in _rows(table, row, end, _READ_BLOCKS * layout.block_rows):
            while batch.num_rows:
                piece = batch.slice(0, block_end - row)
                pieces.append(piece)
                batch = batch.slice(piece.num_rows)  # noqa: PLW2901
                row += piece.num_rows
                if row == block_end:
                    rows = pa.Table.from_batches(pieces, layout.schema)
                    ends_part = row == end or row % size == 0
                    yield self._block(file, layout, start, rows, num_rows, ends_part=ends_part)
                    pieces, start, block_end = [], row, _block_end(row, size, end, layout.block_rows)

    def _block(
        self, file: InputFile, layout: _Layout, first: int, rows: pa.Table, num_rows: int, *, ends_part: bool
    ) -> RowBlock:
        texts: list[RowText] = [
            BadRow(f"{self._input_column!r} is not UTF-8", text.decode(errors="backslashreplace"))
            if isinstance(text, bytes)
            else text
            for text in texts_of(rows.column(self._input_column))
        ]
        return RowBlock(
            file=file,
            part=first // self._rows_per_part,
            first=first,
            texts=texts,
            kept=rows,
            num_bytes=file.num_bytes * (first + rows.num_rows) // max(1, num_rows),
            ends_part=ends_part,
            layout=layout,
        )

    def write(self, block: RowBlock, stream: Any) -> "_TableWriter":
        """As `Format.write`."""
        return _TableWriter(stream, block.layout, self._columns)


class _TableWriter:
    """Writes a part, a row group at a time."""

    def __init__(self, stream: Any, layout: _Layout, columns: AnswerColumns) -> None:
        self._columns = columns
        self._group_rows = layout.group_rows
        self._schema = columns.schema(layout.schema)
        self._writer = pq.ParquetWriter(stream, self._schema, compression=layout.compression)
        self._waiting: list[pa.Table] = []
        self._num_read = 0

    def write(self, block: RowBlock, outcomes: Sequence[Outcome]) -> None:
        """As `PartWriter.write`."""
        table = block.kept
        for field, array in zip(self._columns.fields, self._columns.arrays(outcomes), strict=True):
            table = table.append_column(field, array)
        if any(isinstance(each, Refusal) for each in outcomes):
            table = table.filter(pa.array([not isinstance(each, Refusal) for each in outcomes]))
        self._waiting.append(table)
        self._num_read += block.kept.num_rows
        if self._num_read >= self._group_rows:
            self._flush()

    def close(self) -> None:
        """As `PartWriter.close`."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        """Write a row group. Its pages depend on its rows alone, not on how they were read."""
        if any(table.num_rows for table in self._waiting):
            group = pa.concat_tables(self._waiting).combine_chunks()
            self._writer.write_table(group, row_group_size=group.num_rows)
        self._waiting, self._num_read = [], 0

    def __del__(self) -> None:
        if hasattr(self, "_writer"):
            self._writer.is_open = False  # a part that was given up gets no end; pyarrow would write one here


def _layout(table: pq.ParquetFile, rows_per_part: int) -> _Layout:
    metadata = table.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    row_bytes = sum(group.total_byte_size for group in groups) / max(1, metadata.num_rows)
    block_rows = max(1, min(BLOCK_ROWS, int(BLOCK_BYTES / max(1, row_bytes))))
    group_rows = max(block_rows, min(int(_GROUP_BYTES / max(1, row_bytes)), rows_per_part))
    compression = groups[0].column(0).compression if groups and metadata.num_columns else "SNAPPY"
    packed = "none" if compression == "UNCOMPRESSED" else compression
    return _Layout(table.schema_arrow, packed, group_rows, block_rows)


def _rows(table: pq.ParquetFile, start: int, end: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows from `start` to `end`, of the row groups that hold them, at most `batch_rows` at a time."""
    metadata, groups, row, first = table.metadata, list[int](), 0, 0
    for number in range(metadata.num_row_groups):
        num_rows = metadata.row_group(number).num_rows
        if row < end and row + num_rows > start:
            first = first if groups else row
            groups.append(number)
        row += num_rows
    row = first
    for batch in table.iter_batches(batch_rows, row_groups=groups) if groups else ():
        wanted = batch.slice(max(0, start - row), max(0, end - max(row, start)))
        row += batch.num_rows
        yield wanted


def _block_end(row: int, part_rows: int, end: int, block_rows: int) -> int:
    """Where a block that begins at `row` ends. Blocks are counted from the beginning of their part."""
    part = row // part_rows * part_rows
    return min(end, part + part_rows, part + ((row - part) // block_rows + 1) * block_rows)


def _runs(parts: Sequence[int]) -> Iterator[range]:
    """Consecutive numbers, together."""
    for _, run in itertools.groupby(enumerate(parts), key=lambda each: each[1] - each[0]):
        numbers = [number for _, number in run]
        yield range(numbers[0], numbers[-1] + 1)
