"""Pairs that a model made, to train on beside a corpus' own (`dragoman back-translate` writes them)."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from dragoman.model.corpora.cleaning import Fault, Reading, clean, clean_example
from dragoman.model.corpora.corpus import Corpus, Pair, TrainingFiles
from dragoman.model.corpora.readers import make_pairs, read_json_lines
from dragoman.model.corpora.report import Reason, Tally
from dragoman.model.corpora.settings import PairSettings
from dragoman.model.corpora.sources import SourceFile, SourceFiles
from dragoman.model.errors import CorpusError

__all__ = ["FIELDS", "with_synthetic_pairs"]

FIELDS: tuple[Literal["source"], Literal["target"]] = ("source", "target")
"""What the two texts of a pair are called in its JSON object."""


def with_synthetic_pairs(corpus: Corpus[Pair], settings: PairSettings, files: SourceFiles) -> Corpus[Pair]:
    """`corpus` with the pairs of `settings.synthetic_pairs` behind its own training pairs, read anew each pass.

    A model that makes pairs may have been trained on other splits than this corpus has: a pair is left out when
    either text stands in the validation or the test split, on the same side.

    Raises:
        CorpusError: a file is missing, or holds no pair that is fit to learn from.
    """
    if not settings.synthetic_pairs:
        return corpus
    sources = [file for pattern in settings.synthetic_pairs for file in files.matching(pattern)]
    held_out = [*corpus.validation, *corpus.test]
    held_out_texts = {pair.source for pair in held_out}, {pair.target for pair in held_out}

    def read(tally: Tally, *, count_duplicates: bool) -> Iterator[Pair]:
        return clean(
            _without(held_out_texts, _read(sources, settings.max_line_bytes)),
            tally,
            drop_duplicates=settings.drop_duplicates,
            count_duplicates=count_duplicates,
        )

    tally = Tally()
    num_pairs = sum(1 for _ in read(tally, count_duplicates=True))
    report = tally.report("pairs")
    if not num_pairs:
        names = ", ".join(settings.synthetic_pairs)
        reasons = report.reasons(report.left_out) or "no lines"
        raise CorpusError(f"corpus {corpus.name!r}: no pair in {names} is fit to train on: {reasons}")
    return dataclasses.replace(
        corpus,
        train=TrainingFiles(
            lambda: itertools.chain(corpus.train, read(Tally(), count_duplicates=False)),
            len(corpus.train) + num_pairs,
            corpus.num_characters + tally.num_characters,
        ),
        report=corpus.report + report,
    )


def _read(files: Sequence[SourceFile], max_line_bytes: int) -> Iterator[Reading[Pair]]:
    return make_pairs(record for file in files for record in read_json_lines(file, FIELDS, max_line_bytes))


def _without(
    held_out: tuple[set[str], set[str]], readings: Iterable[Reading[Pair]]
) -> Iterator[Reading[Pair]]:
    sources, targets = held_out
    for place, reading in readings:
        if isinstance(reading, Pair):
            pair = clean_example(reading)  # as the held-out ones are
            if pair.source in sources or pair.target in targets:
                yield place, Fault(Reason.HELD_OUT)
                continue
        yield place, reading
