"""Parquet files, through Apache Arrow: the named columns, a few thousand rows at a time."""

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from pyarrow import parquet

from dragoman.model.corpora.cleaning import Fault
from dragoman.model.corpora.readers import Fields
from dragoman.model.corpora.report import Place, Reason
from dragoman.model.corpora.sources import SourceFile
from dragoman.model.errors import CorpusError

__all__ = ["read_parquet"]

_BATCH_ROWS: Final = 1_024


def read_parquet(file: SourceFile, columns: Sequence[str], max_bytes: int) -> Fields:
    """The named columns, all of text, of each row.

    Raises:
        CorpusError: the file is missing, is no Parquet, or lacks a column of text of such a name.
    """
    try:
        # pre_buffer would hold a whole row group, unpacked pages and all.
        with parquet.ParquetFile(file.path, pre_buffer=False, memory_map=False) as table:
            _check_columns(table.schema_arrow, columns, file)
            number = 0
            for batch in table.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False):
                # As bytes: Arrow does not check that text is UTF-8, and one bad row is not the whole file.
                cells = [batch.column(name).cast(pa.large_binary()).to_pylist() for name in columns]
                for row in zip(*cells, strict=True):
                    number += 1
                    yield Place(file.name, number, "row"), _decode(row, columns, max_bytes)
    except pa.ArrowException as error:
        raise CorpusError(f"{file} is not a whole Parquet file: {_first_line(error)}") from error
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise CorpusError(f"cannot read {file}: {reason}") from error


def _check_columns(schema: Any, columns: Sequence[str], file: SourceFile) -> None:
    for name in columns:
        if name not in schema.names:
            raise CorpusError(f"{file} has no column {name!r}; it has {', '.join(schema.names)}")
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (
            pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
        ):
            raise CorpusError(f"{file}: column {name!r} holds {kind}, not text")


def _decode(cells: Sequence[bytes | None], columns: Sequence[str], max_bytes: int) -> tuple[str, ...] | Fault:
    texts = []
    for name, cell in zip(columns, cells, strict=True):
        if cell is None:
            return Fault(Reason.EMPTY, f"{name!r} is null")
        if len(cell) > max_bytes:
            return Fault(Reason.TOO_LONG, f"over {max_bytes:,} bytes")
        try:
            texts.append(cell.decode())
        except UnicodeDecodeError as error:
            return Fault(Reason.NOT_UTF8, f"{name!r}: byte 0x{cell[error.start]:02x}")
    return tuple(texts)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
