"""What every corpus is: three splits of pairs (translation) or of documents (generation)."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from dragoman.model.corpora.report import CorpusReport
from dragoman.model.corpora.sources import SourceFile
from dragoman.model.errors import CorpusError

__all__ = [
    "Corpus",
    "Example",
    "Pair",
    "Rereadable",
    "TrainingFiles",
    "example_digest",
    "stable_digest",
    "stable_share",
]


class Pair(NamedTuple):
    """A text and its translation."""

    source: str
    target: str


Example = TypeVar("Example", Pair, str)
Example_co = TypeVar("Example_co", covariant=True)


class Rereadable(Protocol[Example_co]):
    """Examples to go through again and again: a list of them, or files that are read anew each time."""

    def __iter__(self) -> Iterator[Example_co]: ...

    def __len__(self) -> int: ...


class TrainingFiles(Generic[Example]):
    """Training examples that stay in their files: each pass reads these anew, in constant memory."""

    def __init__(self, read: Callable[[], Iterator[Example]], num_examples: int, num_characters: int) -> None:
        """`read` starts a pass; an earlier one has counted what it gives.

        Attributes:
            num_characters: of all texts, or somewhat more.
        """
        self._read: Callable[[], Iterator[Example]] = read
        self._num_examples = num_examples
        self.num_characters = num_characters

    def __iter__(self) -> Iterator[Example]:
        return self._read()

    def __len__(self) -> int:
        return self._num_examples


@dataclasses.dataclass(frozen=True)
class Corpus(Generic[Example]):
    """Examples to learn from, to choose by and to measure on.

    Attributes:
        train: may be larger than memory: go through it, do not copy it.
        report: what reading left out or mended.
        files: what it is read from; none where it is made.

    Raises:
        CorpusError: a split holds nothing; `test` alone may be empty.
    """

    name: str
    train: Rereadable[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    report: CorpusReport = dataclasses.field(default_factory=CorpusReport)
    files: tuple[SourceFile, ...] = ()

    def __post_init__(self) -> None:
        for split in ("train", "validation"):
            if not getattr(self, split):
                raise CorpusError(f"corpus {self.name!r} is empty: its {split} split holds no examples")

    @property
    def held_out(self) -> Sequence[Example]:
        """What quality is measured on: the test split where there is one, the validation split otherwise."""
        return self.test or self.validation

    def texts(self, max_characters: int | None = None) -> Iterator[str]:
        """Training text for the tokenizer to learn from: all, or at most `max_characters`, evenly spread.

        Of pairs, whole ones are taken; of documents, as much of the start as there is room for.
        """
        share = 1.0 if max_characters is None else min(1.0, max_characters / max(1, self.num_characters))
        num_met = num_taken = 0
        for example in self.train:
            sides = example if isinstance(example, Pair) else (example,)
            size = sum(map(len, sides))
            num_met += size
            room = size if share == 1.0 else int(num_met * share) - num_taken
            if isinstance(example, str) and room > 0:
                yield example[:room]
                num_taken += min(room, size)
            elif room >= size:
                yield from sides
                num_taken += size

    @property
    def num_characters(self) -> int:
        """Of all training texts, or somewhat more."""
        if isinstance(self.train, TrainingFiles):
            return self.train.num_characters
        return sum(
            sum(map(len, example)) if isinstance(example, Pair) else len(example) for example in self.train
        )


def example_digest(example: Pair | str) -> int:
    """A number of 64 bits for the text of an example, that of both sides of a pair.

    Raises:
        UnicodeEncodeError: a text holds half of a surrogate pair.
    """
    # No side holds the separator: cleaning removes control characters.
    return stable_digest("\0".join(example) if isinstance(example, Pair) else example)


def stable_digest(key: str) -> int:
    """A number of 64 bits that depends on `key` alone: the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())


def stable_share(key: str) -> float:
    """`stable_digest` as a number in [0, 1)."""
    return stable_digest(key) / 2**64
