"""Corpora of one's own files, brought to three splits."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from dragoman.model.corpora.cleaning import Reading, clean
from dragoman.model.corpora.corpus import Corpus, Example, Pair, TrainingFiles
from dragoman.model.corpora.holding_out import HeldOut, hold_out_by_source, hold_out_ends
from dragoman.model.corpora.readers import (
    Fields,
    make_pairs,
    make_texts,
    read_documents,
    read_json_lines,
    read_line_documents,
    read_parallel,
    read_tsv,
)
from dragoman.model.corpora.report import CorpusReport, Tally
from dragoman.model.corpora.settings import (
    JsonLinesSettings,
    ParallelSettings,
    ParquetSettings,
    PatternSettings,
    TextSettings,
    TsvSettings,
)
from dragoman.model.corpora.sources import STANDARD_INPUT, SourceFile, SourceFiles
from dragoman.model.errors import CorpusError

__all__ = ["read_document_files", "read_pair_files"]

Read = Callable[[], Iterator[Reading[Example]]]
"""Starts reading a split from its first example."""

HoldOut = Callable[[Iterable[Example], float, float], HeldOut[Example]]

RecordSettings = TsvSettings | JsonLinesSettings | ParquetSettings


def read_pair_files(
    name: str, settings: ParallelSettings | RecordSettings, sources: SourceFiles
) -> Corpus[Pair]:
    """Pairs of the files that `settings` names among `sources`, those that are fit to learn from.

    Raises:
        CorpusError: files are missing or do not fit together, or nothing in them is fit.
    """

    def reader(files: Any) -> Read[Pair]:
        if isinstance(settings, ParallelSettings):
            source, target = sources.file(files.source), sources.file(files.target)
            return lambda: read_parallel(source, target, settings.max_line_bytes)
        records = _record_reader(settings, sources.matching(files), "translation")
        return lambda: make_pairs(records())

    return _read_splits(name, settings, "pairs", reader, lambda _: hold_out_by_source)


def read_document_files(
    name: str, settings: JsonLinesSettings | ParquetSettings | TextSettings, sources: SourceFiles
) -> Corpus[str]:
    """Documents of the files that `settings` names among `sources`, those that are fit to learn from.

    Raises:
        CorpusError: files are missing, or nothing in them is fit.
    """

    def reader(files: str) -> Read[str]:
        found = sources.matching(files)
        if not isinstance(settings, TextSettings):
            records = _record_reader(settings, found, "generation")
            return lambda: make_texts(records())
        if files == STANDARD_INPUT:
            return lambda: read_line_documents(found[0], settings.max_line_bytes)
        return lambda: read_documents(found, settings.max_line_bytes)

    def hold_out(files: str) -> HoldOut[str]:
        has_files_as_documents = isinstance(settings, TextSettings) and files != STANDARD_INPUT
        return hold_out_ends if has_files_as_documents else hold_out_by_source

    return _read_splits(name, settings, "documents", reader, hold_out)


def _record_reader(
    settings: RecordSettings, files: list[SourceFile], task: Literal["translation", "generation"]
) -> Callable[[], Fields]:
    """Reads the wanted fields of all `files`, one file after the other."""

    def read_file(file: SourceFile) -> Fields:
        limit = settings.max_line_bytes
        match settings:
            case TsvSettings():
                columns = (settings.source_column, settings.target_column)
                return read_tsv(file, columns, limit, header=settings.header)
            case JsonLinesSettings():
                pair = (settings.source_field, settings.target_field)
                return read_json_lines(file, pair if task == "translation" else (settings.text_field,), limit)
            case ParquetSettings():
                from dragoman.model.corpora.parquet import read_parquet  # noqa: PLC0415  Arrow is 100 MB in memory

                pair = (settings.source_column, settings.target_column)
                return read_parquet(file, pair if task == "translation" else (settings.text_column,), limit)

    return lambda: (record for file in files for record in read_file(file))


def _read_splits(
    name: str,
    settings: ParallelSettings | PatternSettings,
    unit: Literal["pairs", "documents"],
    reader: Callable[[Any], Read[Example]],
    hold_out: Callable[[Any], HoldOut[Example]],
) -> Corpus[Example]:
    """Go through each split once; what has no files of its own is held out from the training data."""
    readers = {
        split: reader(files)
        for split in ("train", "validation", "test")
        if (files := getattr(settings, split)) is not None
    }
    report = CorpusReport(unit)
    tallies = {split: Tally() for split in readers}

    def examples(split: str) -> Iterator[Example]:
        return clean(readers[split](), tallies[split], drop_duplicates=settings.drop_duplicates)

    held_out = hold_out(settings.train)(
        examples("train"),
        0.0 if "validation" in readers else settings.validation_share,
        0.0 if "test" in readers else settings.test_share,
    )
    own = {split: list(examples(split)) for split in readers if split != "train"}
    for split, tally in tallies.items():
        counts = tally.report(unit)
        if not counts.num_kept:
            raise CorpusError(
                f"corpus {name!r} is empty: of {counts.num_read:,} {unit} in {getattr(settings, split)}, its "
                f"{split} split, none is left; {counts.reasons({**counts.left_out, **counts.cut}) or 'no lines'}"
            )
        report += counts
    validation = own.get("validation", held_out.validation)
    if not held_out.num_train or not validation:
        raise CorpusError(
            f"corpus {name!r}: {_how_held_out(settings, tallies['train'], held_out.num_train, unit)}"
        )

    def training() -> Iterator[Example]:
        again = clean(
            readers["train"](),
            Tally(),  # counted above
            drop_duplicates=settings.drop_duplicates,
            count_duplicates=False,
        )
        return held_out.training(again)

    return Corpus(
        name,
        TrainingFiles(training, held_out.num_train, tallies["train"].num_characters),
        validation,
        own.get("test", held_out.test),
        report,
    )


def _how_held_out(
    settings: ParallelSettings | PatternSettings,
    tally: Tally,
    num_train: int,
    unit: Literal["pairs", "documents"],
) -> str:
    """Why holding out left nothing to train on, or took nothing to validate on, and what to do."""
    examples = f"of {tally.report(unit).num_kept:,} {unit} in its train split"
    shares = ", ".join(
        f"{split}_share = {getattr(settings, f'{split}_share'):g}"
        for split in ("validation", "test")
        if getattr(settings, split) is None
    )
    if num_train:
        return (
            f"{examples} none is held out to validate on ({shares}): "
            "raise validation_share, or name a file as corpus.validation"
        )
    return (
        f"{examples} none is left to train on, all are held out ({shares}; those with an equal source stay "
        f"together): give more {unit}, or files of their own for validation and test"
    )
