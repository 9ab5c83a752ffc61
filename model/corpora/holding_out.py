"""Validation and test examples held out from training data, in one pass and bounded memory."""

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

from dragoman.model.corpora.cleaning import DigestSet
from dragoman.model.corpora.corpus import Example, Pair, stable_digest

__all__ = ["MAX_HELD_OUT", "HeldOut", "cut_ends", "hold_out_by_source", "hold_out_ends"]

# Of each split: it stays in memory, and the error of a figure measured on so many is half a percent.
MAX_HELD_OUT: Final = 10_000

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class HeldOut(Generic[Example]):
    """What was held out of some examples, and how to leave it out of them in later passes.

    Attributes:
        num_train: how many examples `training` leaves.
        training: the examples, of those that were held out from, to learn from.
    """

    validation: list[Example]
    test: list[Example]
    num_train: int
    training: Callable[[Iterable[Example]], Iterator[Example]]


def hold_out_by_source(
    examples: Iterable[Example], validation_share: float, test_share: float
) -> HeldOut[Example]:
    """Hold out by a stable hash of the source, so that repeated ones stay on one side.

    The distinct sources of lowest hash validate, the next ones test: so many as the shares say, and at
    most `MAX_HELD_OUT` examples each.
    """
    lowest: _Lowest[Example] = _Lowest(2 * MAX_HELD_OUT if validation_share or test_share else 0)
    sources = DigestSet()
    num_examples = num_sources = 0
    for example in examples:
        digest = _source_digest(example)
        lowest.add(digest, example)
        num_examples += 1
        # Sources beyond what can be remembered count as new ones: by then the shares, if they are over
        # a few in a thousand, ask for more than MAX_HELD_OUT anyway.
        num_sources += not sources.add(digest)
    validation: _Taken[Example] = lowest.take(math.ceil(num_sources * validation_share))
    test: _Taken[Example] = lowest.take(math.ceil(num_sources * test_share))
    held_out = {*validation.digests, *test.digests}

    def training(again: Iterable[Example]) -> Iterator[Example]:
        return (example for example in again if _source_digest(example) not in held_out)

    num_train = num_examples - validation.num_added - test.num_added
    return HeldOut(validation.values, test.values, num_train, training)


def hold_out_ends(documents: Iterable[str], validation_share: float, test_share: float) -> HeldOut[str]:
    """Cut off the end of each document; of the ends, `MAX_HELD_OUT` documents' by lowest hash are kept."""
    lowest: _Lowest[tuple[str, str]] = _Lowest(MAX_HELD_OUT)
    num_train = 0
    for document in documents:
        head, middle, end = cut_ends(document, validation_share, test_share)
        num_train += bool(head.strip())
        lowest.add(stable_digest(document), (middle, end))

    def training(again: Iterable[str]) -> Iterator[str]:
        heads = (cut_ends(document, validation_share, test_share)[0] for document in again)
        return (head for head in heads if head.strip())

    ends = lowest.take(MAX_HELD_OUT).values
    validation = [middle for middle, _ in ends if middle.strip()]
    test = [end for _, end in ends if end.strip()]
    return HeldOut(validation, test, num_train, training)


def cut_ends(document: str, validation_share: float, test_share: float = 0.0) -> tuple[str, str, str]:
    """A document in three, as nanoGPT does: text to train on, after it for validation, then for the test."""
    first = int(len(document) * (1 - validation_share - test_share))
    second = int(len(document) * (1 - test_share))
    return document[:first], document[first:second], document[second:]


def _source_digest(example: Pair | str) -> int:
    return stable_digest(example.source if isinstance(example, Pair) else example)


@dataclasses.dataclass(frozen=True)
class _Taken(Generic[Value]):
    digests: list[int]
    values: list[Value]  # in the order they were added
    num_added: int  # with these digests; more than `values` only where a digest has very many


class _Lowest(Generic[Value]):
    """The values under the lowest `max_digests` different digests of all that are added."""

    _MAX_VALUES = 100  # of one digest: a sentence that stands in a corpus a million times is no million

    def __init__(self, max_digests: int) -> None:
        self._max_digests = max_digests
        self._heap: list[int] = []  # digests, negated: the highest comes first
        self._values: dict[int, list[tuple[int, Value]]] = {}
        self._num_added: dict[int, int] = {}
        self._count = 0

    def add(self, digest: int, value: Value) -> None:
        self._count += 1
        if digest not in self._values:
            if len(self._heap) < self._max_digests:
                heapq.heappush(self._heap, -digest)
            elif self._heap and digest < -self._heap[0]:
                highest = -heapq.heapreplace(self._heap, -digest)
                del self._values[highest], self._num_added[highest]
            else:
                return
            self._values[digest], self._num_added[digest] = [], 0
        self._num_added[digest] += 1
        if len(self._values[digest]) < self._MAX_VALUES:
            self._values[digest].append((self._count, value))

    def take(self, num_digests: int) -> _Taken[Value]:
        """Remove the lowest `num_digests`, or fewer where their values would be more than `MAX_HELD_OUT`."""
        digests: list[int] = []
        numbered: list[tuple[int, Value]] = []
        for digest in sorted(self._values)[:num_digests]:
            if digests and len(numbered) + len(self._values[digest]) > MAX_HELD_OUT:
                break
            digests.append(digest)
            numbered += self._values.pop(digest)
        numbered.sort(key=lambda pair: pair[0])
        num_added = sum(self._num_added.pop(digest) for digest in digests)
        self._heap = []  # nothing is added after the first is taken
        return _Taken(digests, [value for _, value in numbered], num_added)
