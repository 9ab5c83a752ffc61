"""Line in, line out: a stream of lines through calls to a model, in order and in constant memory."""

import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dragoman.cli.lines import BadLine, Block, blocks_of, read_blocks
from dragoman.cli.output import note
from dragoman.client.errors import InvalidRequestError
from dragoman.client.messages import refused_inputs
from dragoman.client.pipeline import map_in_order, until_accepted
from dragoman.common.errors import UsageError
from dragoman.common.text import is_blank

__all__ = ["LINES_PER_CALL", "LineAnswers", "LineCalls", "lines_from"]

LINES_PER_CALL = 32
MAX_CALLS = 8
MAX_NOTED = 10
"""The first skipped lines are named on standard error; the others are only counted."""

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


async def lines_from(source: Sequence[str] | int, *, max_lines: int = LINES_PER_CALL) -> AsyncIterator[Block]:
    """Blocks of the given lines, or of those of the file with that descriptor."""
    if isinstance(source, int):
        async for block in read_blocks(source, max_lines=max_lines):
            yield block
    else:
        for block in blocks_of(source, max_lines=max_lines):
            yield block


@dataclass(frozen=True)
class LineAnswers(Generic[_Answer]):
    """A block of lines and what became of each.

    Attributes:
        block: The lines.
        answers: An answer for each line. None stands for an empty line, which is not sent; a `BadLine` stands for
            a line that was skipped.
    """

    block: Block
    answers: list[_Answer | BadLine | None]


@dataclass(frozen=True, kw_only=True)
class LineCalls(Generic[_Item, _Answer]):
    """How lines become calls.

    Attributes:
        parse: Turns a line into an item of a call; raises ValueError with the reason where it cannot.
        ask: Sends one call and returns an answer for each item.
        unit: The name of a line in messages.
        timeout_s: How long a call may be repeated while the server has no room.
        skips_bad: Whether a line that cannot be answered is skipped, named on standard error and counted. If
            not, it ends everything once the lines before it are answered.
    """

    parse: Callable[[str], _Item]
    ask: Callable[[list[_Item]], Awaitable[list[_Answer]]]
    unit: str
    timeout_s: float
    skips_bad: bool

    async def run(self, blocks: AsyncIterator[Block]) -> AsyncGenerator[LineAnswers[_Answer], None]:
        """The answers to the lines of `blocks`, in their order, each block's as soon as they are there.

        Raises:
            UsageError: a line cannot be answered and is not skipped; it says which.
            CallError: the server cannot be reached.
        """
        num_lines = num_bad = 0
        answered = map_in_order(self._answer, blocks, max_in_flight=MAX_CALLS)
        async with contextlib.aclosing(answered):
            async for each in answered:
                bad = {at: line for at, line in enumerate(each.answers) if isinstance(line, BadLine)}
                if bad and not self.skips_bad:
                    first = min(bad)
                    if first:
                        yield LineAnswers(each.block, each.answers[:first])
                    raise UsageError(f"{self.unit} {each.block.start + first + 1}: {bad[first].reason}")
                yield each
                for at, line in bad.items():
                    num_bad += 1
                    if num_bad <= MAX_NOTED:
                        note(f"{self.unit} {each.block.start + at + 1} skipped: {line.reason}")
                num_lines += len(each.answers)
        if num_bad:
            note(f"skipped {num_bad:,} of {num_lines:,} {self.unit}s")

    async def _answer(self, block: Block) -> LineAnswers[_Answer]:
        answers: list[_Answer | BadLine | None] = [None] * len(block.lines)
        pending: dict[int, _Item] = {}
        for index, line in enumerate(block.lines):
            parsed = self._parsed(line)
            if isinstance(parsed, BadLine):
                answers[index] = parsed
                if not self.skips_bad:
                    break
            elif parsed is not None:
                pending[index] = parsed[0]
        while pending:
            ask = functools.partial(self.ask, list(pending.values()))
            try:
                results = await until_accepted(ask, timeout_s=self.timeout_s)
            except InvalidRequestError as error:
                self._take_out(pending, answers, error)
            else:
                for index, answer in zip(pending, results, strict=True):
                    answers[index] = answer
                break
        return LineAnswers(block, answers)

    def _parsed(self, line: str | BadLine) -> tuple[_Item] | BadLine | None:
        """Return the item of a line as a tuple of one; None for a line that shows nothing."""
        if isinstance(line, BadLine):
            return line
        if is_blank(line):
            return None
        try:
            return (self.parse(line),)
        except ValueError as error:
            return BadLine(str(error))

    def _take_out(
        self,
        pending: dict[int, _Item],
        answers: list[_Answer | BadLine | None],
        error: InvalidRequestError,
    ) -> None:
        """Move refused lines from `pending` to `answers`, as `BadLine`. The caller then sends the rest again.

        Where no line is skipped, the lines after the first refused one leave `pending` too.
        """
        refused = refused_inputs(error.violations)
        if not refused or not all(refused_inputs([each]) for each in error.violations):
            raise error  # something else is wrong, and stays so
        indexes = list(pending)
        for position, description in refused.items():
            del pending[indexes[position]]
            answers[indexes[position]] = BadLine(description)
        if not self.skips_bad:
            for index in indexes[min(refused) :]:
                pending.pop(index, None)
