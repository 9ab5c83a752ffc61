"""What stands between files as people have them and examples to learn from: left out, mended, counted."""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

from dragoman.common.text import clean_text, is_blank
from dragoman.model.corpora.corpus import Example, Pair, example_digest
from dragoman.model.corpora.report import Place, Reason, Tally

__all__ = [
    "MAX_REMEMBERED",
    "CutLine",
    "DigestSet",
    "Fault",
    "Reading",
    "clean",
    "clean_example",
]

# Duplicates are found among so many different examples: a table of 64 MiB, whatever the corpus' size.
MAX_REMEMBERED: Final = 5_000_000


class Fault(NamedTuple):
    """Stands for an example that could not be read."""

    reason: Reason
    detail: str = ""


class CutLine(NamedTuple):
    """Stands for a line that its document goes without; the document follows."""

    reason: Reason
    detail: str = ""


Reading = tuple[Place, Example | Fault | CutLine]
"""What a reader gives: an example, or what is wrong with it, and where it stands."""


class DigestSet:
    """Up to `max_digests` numbers of 64 bits, at 13 to 26 bytes each where a Python set takes 100.

    Open addressing with linear probing (Knuth, volume 3, 6.4, algorithm L): digests are uniform, so their
    own low bits say where to look.
    """

    def __init__(self, max_digests: int = MAX_REMEMBERED) -> None:
        """Empty; it grows by doubling."""
        self._max_digests = max_digests
        self._num_digests = 0
        self._slots = _free_slots(1 << 10)
        self._mask = len(self._slots) - 1

    def __len__(self) -> int:
        return self._num_digests

    @property
    def is_full(self) -> bool:
        """Whether it takes no more: what is not in it may have been met before."""
        return self._num_digests >= self._max_digests

    def add(self, digest: int) -> bool:
        """Take `digest` in, if there is room; returns whether it was there already."""
        digest = digest or 1  # 0 marks a free slot
        slots, mask = self._slots, self._mask
        slot = digest & mask
        while found := slots[slot]:
            if found == digest:
                return True
            slot = (slot + 1) & mask
        if not self.is_full:
            slots[slot] = digest
            self._num_digests += 1
            if self._num_digests * 8 > (mask + 1) * 5:  # beyond five eighths full, probes become long
                self._grow()
        return False

    def _grow(self) -> None:
        old, self._slots = self._slots, _free_slots(2 * len(self._slots))
        self._mask = len(self._slots) - 1
        for digest in old:
            if digest:
                slot = digest & self._mask
                while self._slots[slot]:
                    slot = (slot + 1) & self._mask
                self._slots[slot] = digest


def _free_slots(count: int) -> "memoryview[int]":
    # A memory view gives Python's own integers four times as fast as numpy's indexing.
    return np.zeros(count, dtype=np.uint64).data.cast("B").cast("Q")


def clean(
    readings: Iterable[Reading[Example]],
    tally: Tally,
    *,
    drop_duplicates: bool,
    count_duplicates: bool = True,
) -> Iterator[Example]:
    """The examples worth keeping, in order, one at a time; `tally` counts the rest as it goes by.

    Texts are cleaned (`dragoman.common.text`); an example without text, or with text that UTF-8 cannot say (half of a
    surrogate pair, out of JSON's escapes), is left out; so is one equal to an earlier one, if wanted.
    """
    remembered = DigestSet() if drop_duplicates or count_duplicates else None
    for place, reading in readings:
        if isinstance(reading, CutLine):
            tally.cut_line(reading.reason, place, reading.detail)
            continue
        tally.num_read += 1
        if isinstance(reading, Fault):
            tally.leave_out(reading.reason, place, reading.detail)
            continue
        example = clean_example(reading)
        sides = example if isinstance(example, Pair) else (example,)
        if any(map(is_blank, sides)):
            tally.leave_out(Reason.EMPTY, place)
            continue
        try:
            digest = example_digest(example)
        except UnicodeEncodeError:
            tally.leave_out(Reason.NOT_UTF8, place, "half of a surrogate pair")
            continue
        if remembered is not None:
            was_full = remembered.is_full
            if remembered.add(digest):
                tally.num_duplicates += 1
                if drop_duplicates:
                    tally.leave_out(Reason.DUPLICATE, place)
                    continue
            elif was_full:
                tally.num_searched = len(remembered)
        tally.num_mended += example != reading
        tally.num_characters += sum(map(len, sides))
        yield example


def clean_example(example: Example) -> Example:
    """The example with each of its texts as `dragoman.common.text.clean_text` leaves it."""
    if isinstance(example, Pair):
        return Pair(*map(clean_text, example))
    return clean_text(example)
