"""What every corpus is: three splits of pairs (translation) or of documents (generation)."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from model.errors import CorpusError

__all__ = ["Corpus", "Example", "Pair", "stable_share"]


class Pair(NamedTuple):
    """A text and its translation."""

    source: str
    target: str


Example = TypeVar("Example", Pair, str)


@dataclasses.dataclass(frozen=True)
class Corpus(Generic[Example]):
    """Examples to learn from, to choose by and to measure on.

    Attributes:
        num_empty: examples that were left out because a side of theirs is empty.

    Raises:
        CorpusError: a split holds nothing; `test` alone may be empty.
    """

    name: str
    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    num_empty: int = 0

    def __post_init__(self) -> None:
        for split in ("train", "validation"):
            if not getattr(self, split):
                raise CorpusError(f"corpus {self.name!r} is empty: its {split} split holds no examples")

    @property
    def held_out(self) -> Sequence[Example]:
        """What quality is measured on: the test split where there is one, the validation split otherwise."""
        return self.test or self.validation

    def texts(self) -> Iterator[str]:
        """All training text, for the tokenizer to learn from."""
        for example in self.train:
            if isinstance(example, Pair):
                yield example.source
                yield example.target
            else:
                yield example


def stable_share(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone: the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
