"""What the formats have in common: blocks of rows, the parts that they are written to, and rows that are no texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeAlias

from dragoman.files.answers import Outcome
from dragoman.files.storage import InputFile

__all__ = ["BLOCK_BYTES", "BLOCK_ROWS", "BadRow", "Format", "PartWriter", "RowBlock", "RowText", "part_place"]

BLOCK_ROWS = 256
"""Most rows of a block."""

BLOCK_BYTES = 1024 * 1024
"""About the most that the rows of a block take: many blocks are in memory."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that holds no text.

    Attributes:
        reason: what is wrong with it.
        shown: what stands there.
    """

    reason: str
    shown: str


RowText: TypeAlias = str | BadRow | None
"""A row's text. None: the row is there and has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Consecutive rows of a part.

    Attributes:
        file: where they are from.
        part: number of the part in the file.
        first: number of the first row in the file, from 0.
        texts: of the rows.
        kept: the rows, as their format wants to write them.
        num_bytes: of the file, up to the end of these rows.
        ends_part: whether no more rows of the part follow. Such a block may be empty.
        layout: how the file is laid out, for a format that keeps that.
    """

    file: InputFile
    part: int
    first: int
    texts: Sequence[RowText]
    kept: Any
    num_bytes: int
    ends_part: bool
    layout: Any = None


class PartWriter(Protocol):
    """Writes a part."""

    def write(self, block: RowBlock, outcomes: Sequence[Outcome]) -> None:
        """Write the rows of a block with their answers. Rows that are refused are left out."""

    def close(self) -> None:
        """Write what is left. The stream stays open."""


class Format(Protocol):
    """How files of a kind are read and written.

    Attributes:
        suffixes: what their names end with.
        unit: what a row is called.
        first_number: that the first row has.
    """

    suffixes: tuple[str, ...]
    unit: str
    first_number: int

    def check(self, file: InputFile) -> None:
        """Refuse a file that cannot be answered, as far as its beginning says it.

        Raises:
            UsageError: it has not the columns that it should have.
            OperationError: it cannot be read.
        """

    def read(self, file: InputFile, wants: Callable[[int], bool]) -> Iterator[RowBlock]:
        """The blocks of the parts whose numbers `wants` accepts. Every file has a part.

        Raises:
            OperationError: it cannot be read.
        """

    def write(self, block: RowBlock, stream: Any) -> PartWriter:
        """A writer of the part that begins with `block`."""


def part_place(file: InputFile, part: int, suffixes: Sequence[str]) -> str:
    """Where a part is written to: data/a.jsonl.gz becomes data/a-00000.jsonl.gz."""
    name = file.place.name
    suffix = next((each for each in sorted(suffixes, key=len, reverse=True) if name.endswith(each)), "")
    stem = name.removesuffix(suffix) if suffix else name
    return str(PurePosixPath(file.place).with_name(f"{stem}-{part:05d}{suffix}"))
