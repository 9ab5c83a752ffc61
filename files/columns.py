"""Outcomes as Arrow columns."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dragoman.common.errors import UsageError
from dragoman.files.answers import AnswerRow, Outcome

__all__ = ["AnswerColumns", "check_text_column", "texts_of"]

_HYPOTHESES = pa.list_(
    pa.struct(
        [
            ("text", pa.string()),
            ("score", pa.float32()),
            ("log_probability", pa.float32()),
            ("finish_reason", pa.string()),
        ]
    )
)


class AnswerColumns:
    """The columns that an answer has in a table.

    Attributes:
        names: of the columns. The first one holds the text, and the others' names begin with its name.
        fields: their fields.
    """

    def __init__(self, name: str, *, has_hypotheses: bool) -> None:
        """Columns whose text is in the column `name`; with all hypotheses of an answer, where it has several."""
        self._has_hypotheses = has_hypotheses
        self.fields = [
            pa.field(name, pa.string()),
            pa.field(f"{name}_score", pa.float32()),
            pa.field(f"{name}_finish_reason", pa.string()),
        ]
        if has_hypotheses:
            self.fields.append(pa.field(f"{name}_hypotheses", _HYPOTHESES))
        self.names = [field.name for field in self.fields]

    def check_free(self, taken: Sequence[str], where: str) -> None:
        """Refuse a table that has one of the columns already.

        Raises:
            UsageError: naming the column.
        """
        for name in self.names:
            if name in taken:
                raise UsageError(f"{where} has a column {name!r} already: name another --output-column")

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """A schema and these columns."""
        for field in self.fields:
            schema = schema.append(field)
        return schema

    def arrays(self, outcomes: Sequence[Outcome]) -> list[pa.Array]:
        """The columns of `outcomes`; a row without an answer has nulls."""
        rows = [each if isinstance(each, AnswerRow) else None for each in outcomes]
        best = [row and row.best for row in rows]
        values: list[list[Any]] = [
            [each and each.text for each in best],
            [each and each.score for each in best],
            [each and each.finish_reason for each in best],
        ]
        if self._has_hypotheses:
            values.append([row and [each._asdict() for each in row.hypotheses] for row in rows])
        return [pa.array(each, field.type) for each, field in zip(values, self.fields, strict=True)]


def check_text_column(schema: pa.Schema, name: str, where: str) -> None:
    """Refuse a table whose column `name` is missing or holds no texts.

    Raises:
        UsageError: naming the column, and those that there are.
    """
    if name not in schema.names:
        names = ", ".join(schema.names) or "none"
        raise UsageError(f"{where} has no column {name!r}, only {names}: name one by --input-column")
    if schema.names.count(name) > 1:
        raise UsageError(f"{where} has {schema.names.count(name)} columns {name!r}")
    kind = schema.field(name).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (
        pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)
    ):
        raise UsageError(f"{where}: column {name!r} is {kind}, not text")


def texts_of(column: "pa.Array | pa.ChunkedArray") -> list[str | bytes | None]:
    """The texts of a column; bytes where they are not UTF-8, which no reader has checked."""
    try:
        texts: list[str | bytes | None] = column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        texts = list(map(_decoded, column.cast(binary).to_pylist()))
    return texts


def _decoded(content: bytes | None) -> str | bytes | None:
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content
