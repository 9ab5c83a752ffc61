"""Corpora of one's own files, brought to three splits."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model.corpora.corpus import Corpus, Example, Pair, stable_share
from model.corpora.readers import read_documents, read_json_lines, read_parallel, read_tsv
from model.corpora.settings import (
    JsonLinesSettings,
    ParallelSettings,
    SplitSettings,
    TextSettings,
    TsvSettings,
)
from model.errors import CorpusError

__all__ = ["hold_out_ends", "read_document_files", "read_pair_files"]

Splits = tuple[Sequence[Example], Sequence[Example], Sequence[Example]]


def read_pair_files(
    name: str, settings: ParallelSettings | TsvSettings | JsonLinesSettings, folder: Path
) -> Corpus[Pair]:
    """Pairs of the files that `settings` names within `folder`; a pair with an empty side is left out.

    Raises:
        CorpusError: files are missing, empty or do not fit together.
    """

    def read(files: Any) -> list[Pair]:
        match settings:
            case ParallelSettings():
                return read_parallel(folder / files.source, folder / files.target)
            case TsvSettings():
                return read_tsv(folder / files, settings.source_column, settings.target_column)
            case JsonLinesSettings():
                fields = (settings.source_field, settings.target_field)
                return [Pair(*record) for record in read_json_lines(folder / files, fields)]

    return _read_splits(name, settings, folder, read, _hold_out_examples)


def read_document_files(name: str, settings: JsonLinesSettings | TextSettings, folder: Path) -> Corpus[str]:
    """Documents of the files that `settings` names within `folder`; an empty document is left out.

    Raises:
        CorpusError: files are missing or empty.
    """

    def read(files: str) -> list[str]:
        match settings:
            case TextSettings():
                return read_documents(folder, files)
            case JsonLinesSettings():
                return [text for (text,) in read_json_lines(folder / files, (settings.text_field,))]

    hold_out = hold_out_ends if isinstance(settings, TextSettings) else _hold_out_examples
    return _read_splits(name, settings, folder, read, hold_out)


def hold_out_ends(documents: Sequence[str], validation_share: float, test_share: float = 0.0) -> Splits[str]:
    """Cut off the end of each document, as nanoGPT does: text for validation, and after it for the test."""
    cuts = []
    for document in documents:
        first = int(len(document) * (1 - validation_share - test_share))
        second = int(len(document) * (1 - test_share))
        cuts.append((document[:first], document[first:second], document[second:]))
    train, validation, test = ([part for part in parts if part.strip()] for parts in zip(*cuts, strict=True))
    return train, validation, test


def _hold_out_examples(
    examples: Sequence[Example], validation_share: float, test_share: float
) -> Splits[Example]:
    """Set examples aside by a stable hash of the source, so that repeated ones stay on one side."""

    def key(example: Example) -> str:
        return example.source if isinstance(example, Pair) else example

    ranked = sorted({key(example) for example in examples}, key=stable_share)
    num_validation, num_test = (math.ceil(len(ranked) * share) for share in (validation_share, test_share))
    validation, test = set(ranked[:num_validation]), set(ranked[num_validation : num_validation + num_test])
    return (
        [e for e in examples if key(e) not in validation and key(e) not in test],
        [e for e in examples if key(e) in validation],
        [e for e in examples if key(e) in test],
    )


def _read_splits(
    name: str,
    settings: SplitSettings,
    folder: Path,
    read: Callable[[Any], list[Example]],
    hold_out: Callable[[Sequence[Example], float, float], Splits[Example]],
) -> Corpus[Example]:
    """Read each split; what has no files of its own is held out from the training data."""
    if not folder.is_dir():
        raise CorpusError(f"corpus {name!r}: there is no folder {folder}")
    splits: dict[str, list[Example]] = {}
    num_empty = 0
    for split in ("train", "validation", "test"):
        files = getattr(settings, split)
        if files is not None:
            examples = read(files)
            splits[split] = [example for example in examples if _has_text(example)]
            num_empty += len(examples) - len(splits[split])
            if not splits[split]:
                raise CorpusError(f"corpus {name!r} is empty: {files} in {folder} holds no {split} examples")
    train, validation, test = hold_out(
        splits["train"],
        0.0 if "validation" in splits else settings.validation_share,
        0.0 if "test" in splits else settings.test_share,
    )
    return Corpus(
        name, train, splits.get("validation", validation), splits.get("test", test), num_empty=num_empty
    )


def _has_text(example: Pair | str) -> bool:
    sides = example if isinstance(example, Pair) else (example,)
    return all(side.strip() for side in sides)
