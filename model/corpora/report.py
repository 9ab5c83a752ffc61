"""What reading a corpus left out or mended, counted by reason, with the first place each was met."""

import dataclasses
import enum
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

__all__ = ["CorpusReport", "Place", "Reason", "Tally"]


class Reason(enum.Enum):
    """Why something was left out; the value follows a count, as in `3 not UTF-8`."""

    HEADER = "header"
    EMPTY = "empty"
    NOT_UTF8 = "not UTF-8"
    MALFORMED = "malformed"
    TOO_LONG = "over max_line_bytes"
    DUPLICATE = "duplicate"
    HELD_OUT = "with a text of the validation or test split"


class Place(NamedTuple):
    """Where an example begins: a file, as the recipe names it, and the line or row, counted from 1."""

    file: str
    number: int
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


@dataclasses.dataclass(frozen=True)
class CorpusReport:
    """Counts over all splits that were read from files; all zero for a corpus that is made.

    Attributes:
        unit: what is counted.
        num_read: examples met, good and bad.
        left_out: examples left out, by reason.
        cut: lines cut out of documents that stay, by reason.
        first: the first place of each reason, with what is wrong there.
        num_mended: examples kept whose text was cleaned (`dragoman.common.text`).
        num_duplicates: examples equal to an earlier one of their split, left out or not.
        num_searched: only so many distinct examples of a split were remembered to find duplicates among, where
            a split holds more; None where all were.
    """

    unit: Literal["pairs", "documents"] = "documents"
    num_read: int = 0
    left_out: Mapping[Reason, int] = dataclasses.field(default_factory=dict)
    cut: Mapping[Reason, int] = dataclasses.field(default_factory=dict)
    first: Mapping[Reason, str] = dataclasses.field(default_factory=dict)
    num_mended: int = 0
    num_duplicates: int = 0
    num_searched: int | None = None

    @property
    def num_kept(self) -> int:
        """Examples that the splits hold together."""
        return self.num_read - sum(self.left_out.values())

    def __add__(self, other: "CorpusReport") -> "CorpusReport":
        return CorpusReport(
            unit=self.unit,
            num_read=self.num_read + other.num_read,
            left_out=Counter(self.left_out) + Counter(other.left_out),
            cut=Counter(self.cut) + Counter(other.cut),
            first={**other.first, **self.first},
            num_mended=self.num_mended + other.num_mended,
            num_duplicates=self.num_duplicates + other.num_duplicates,
            num_searched=other.num_searched if self.num_searched is None else self.num_searched,
        )

    def lines(self) -> list[str]:
        """What there is to say, in one line, or none if nothing was left out, mended or met twice."""
        parts = list(self._parts())
        return ["; ".join(parts)] if parts else []

    def _parts(self) -> Iterator[str]:
        if num_left_out := sum(self.left_out.values()):
            yield f"left out {num_left_out:,} of {self.num_read:,} {self.unit}: {self.reasons(self.left_out)}"
        if num_cut := sum(self.cut.values()):
            yield f"cut {_counted(num_cut, 'lines')} out of {self.unit}: {self.reasons(self.cut)}"
        if self.num_mended:
            yield f"control characters or special spaces cleaned in {_counted(self.num_mended, self.unit)}"
        if self.num_duplicates and Reason.DUPLICATE not in self.left_out:
            yield f"{_counted(self.num_duplicates, 'duplicates')} (kept)"
        if self.num_searched is not None:
            yield f"duplicates were looked for among the first {self.num_searched:,} different {self.unit} only"

    def reasons(self, counts: Mapping[Reason, int]) -> str:
        """`8 empty (first: ...), 3 not UTF-8 (first: ...)`."""
        return ", ".join(
            f"{count:,} {reason.value}" + (f" (first: {self.first[reason]})" if reason in self.first else "")
            for reason, count in counts.items()
        )


def _counted(count: int, things: str) -> str:
    return f"{count:,} {things if count != 1 else things[:-1]}"


@dataclasses.dataclass
class Tally:
    """A `CorpusReport` in the making, of one split."""

    num_read: int = 0
    left_out: Counter[Reason] = dataclasses.field(default_factory=Counter)
    cut: Counter[Reason] = dataclasses.field(default_factory=Counter)
    first: dict[Reason, str] = dataclasses.field(default_factory=dict)
    num_mended: int = 0
    num_duplicates: int = 0
    num_searched: int | None = None
    num_characters: int = 0  # of what is kept

    def leave_out(self, reason: Reason, place: Place, detail: str = "") -> None:
        """Count an example that was read and is not kept."""
        self.left_out[reason] += 1
        self._remember(reason, place, detail)

    def cut_line(self, reason: Reason, place: Place, detail: str = "") -> None:
        """Count a line that its document goes without."""
        self.cut[reason] += 1
        self._remember(reason, place, detail)

    def report(self, unit: Literal["pairs", "documents"]) -> CorpusReport:
        """The counts so far."""
        return CorpusReport(
            unit=unit,
            num_read=self.num_read,
            left_out=dict(self.left_out),
            cut=dict(self.cut),
            first=dict(self.first),
            num_mended=self.num_mended,
            num_duplicates=self.num_duplicates,
            num_searched=self.num_searched,
        )

    def _remember(self, reason: Reason, place: Place, detail: str) -> None:
        if reason not in self.first:
            self.first[reason] = f"{place}: {detail}" if detail else str(place)
