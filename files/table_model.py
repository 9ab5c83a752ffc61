"""A bundle as a function from Arrow tables to Arrow tables: for Ray Data, Spark and whatever else maps batches."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

from dragoman.client.results import DecodingOptions
from dragoman.common.extras import require_extra

require_extra("files")

import pyarrow as pa  # noqa: E402  a message says which extra is missing

from dragoman.files.answers import (  # noqa: E402
    NUM_SLOTS,
    Outcome,
    Refusal,
    engine_options,
    has_hypotheses,
)
from dragoman.files.columns import AnswerColumns, check_text_column, texts_of  # noqa: E402
from dragoman.files.host import load_rules  # noqa: E402
from dragoman.files.offline_model import WINDOW_ROWS, OfflineModel, TextBatch  # noqa: E402
from dragoman.files.protocol import Begin  # noqa: E402
from dragoman.server.bundle.reader import Bundle  # noqa: E402
from dragoman.server.config import EngineSettings  # noqa: E402

__all__ = ["TableModel"]

NOT_UTF8 = "is not UTF-8"


class TableModel:
    """Answers a column of each table and adds the answers as columns. One process and one core; not for threads.

        model = TableModel("models/dates/1", input_column="text", beam_size=4)
        table = model(table)

    With an output column "translation" a table gets the columns `translation`, `translation_score`,
    `translation_finish_reason` and `translation_error`; with `num_hypotheses` also `translation_hypotheses`. A row that
    cannot be answered has its reason in the error's column, and nulls in the others. A row without a text has nulls
    in all of them.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        input_column: str = "text",
        output_column: str | None = None,
        target_prefix: str = "",
        **options: Unpack[DecodingOptions],
    ) -> None:
        """Load the bundle in the folder `bundle` and check it as a server does.

        Args:
            bundle: MODELS/NAME/VERSION, as `dragoman export` writes it.
            input_column: the column of texts.
            output_column: the column for answers; None: "translation" or "generation", as the model does.
            target_prefix: what every translation begins with.
            options: decoding options, as `dragoman.Client.translate` has them.

        Raises:
            UsageError: the folder holds no sound bundle, or an option breaks a rule.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or texts are tokenised on all cores
        folder = Path(bundle)
        task = Bundle.read(folder).manifest.task
        settings = EngineSettings(
            lanes=1, threads_per_lane=1, lanes_run_in="threads", slots_per_lane=NUM_SLOTS
        )
        given = engine_options(**options)
        self._model = OfflineModel(load_rules(Begin(folder, settings, task, given, target_prefix)))
        self._input_column = input_column
        name = output_column or task
        self._columns = AnswerColumns(name, has_hypotheses=has_hypotheses(options))
        self._error = pa.field(f"{name}_error", pa.string())
        self._num_rows = 0

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of the answered tables, of the schema of the tables."""
        return self._columns.schema(schema).append(self._error)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with the columns of its answers.

        Raises:
            UsageError: the table has no such column, or has one of the answers' already.
        """
        return pa.concat_tables(self._answer([table]))

    def map_batches(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Answer record batches, as Spark's `mapInArrow` gives them. The next ones are begun before one ends."""
        for table in self._answer(batches):
            yield from table.to_batches()

    def _answer(self, tables: "Iterable[pa.Table | pa.RecordBatch]") -> Iterator[pa.Table]:
        """Answer tables in their order, and large ones in pieces: so many texts are in memory, and no more."""
        model, open_tables = self._model, deque[_OpenTable]()
        source = iter(_pieces(tables))
        is_over = False
        while not is_over or open_tables:
            while not is_over and model.wants_texts:
                window = _take_window(source)
                is_over = not window
                open_tables += self._submit(window)
            while open_tables and open_tables[0].batch.is_complete:
                yield self._with_columns(open_tables.popleft())
            if model.has_work:
                model.step()

    def _submit(self, window: Sequence[pa.Table]) -> "list[_OpenTable]":
        """Queue the texts of tables together."""
        columns, numbered = [], list[tuple[Sequence[str | None], int]]()
        for table in window:
            check_text_column(table.schema, self._input_column, "the table")
            self._columns.check_free(table.schema.names, "the table")
            texts = texts_of(table.column(self._input_column))
            columns.append(texts)
            numbered.append(([None if isinstance(text, bytes) else text for text in texts], self._num_rows))
            self._num_rows += len(texts)
        batches = self._model.submit(*numbered)
        return [_OpenTable(*each) for each in zip(window, columns, batches, strict=True)]

    def _with_columns(self, answered: "_OpenTable") -> pa.Table:
        table = answered.table
        outcomes: list[Outcome] = [
            Refusal(NOT_UTF8) if isinstance(text, bytes) else outcome
            for text, outcome in zip(answered.texts, answered.batch.results, strict=True)
        ]
        errors = [each.reason if isinstance(each, Refusal) else None for each in outcomes]
        for field, array in zip(self._columns.fields, self._columns.arrays(outcomes), strict=True):
            table = table.append_column(field, array)
        return table.append_column(self._error, pa.array(errors, pa.string()))


class _OpenTable(NamedTuple):
    """A table whose texts run or wait."""

    table: pa.Table
    texts: Sequence[str | bytes | None]
    batch: TextBatch


def _pieces(tables: "Iterable[pa.Table | pa.RecordBatch]") -> Iterator[pa.Table]:
    """The tables, those of more rows than a window in several pieces."""
    for given in tables:
        table = pa.Table.from_batches([given]) if isinstance(given, pa.RecordBatch) else given
        for start in range(0, max(1, table.num_rows), WINDOW_ROWS):
            yield table.slice(start, WINDOW_ROWS)


def _take_window(pieces: Iterator[pa.Table]) -> list[pa.Table]:
    """The next tables, up to a window of rows."""
    window: list[pa.Table] = []
    while sum(table.num_rows for table in window) < WINDOW_ROWS:
        if (table := next(pieces, None)) is None:
            break
        window.append(table)
    return window
