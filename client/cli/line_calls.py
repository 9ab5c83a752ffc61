"""Line in, line out: a stream of lines through calls to a model, in order and in constant memory."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from client.cli.lines import Block, blocks_of, read_blocks
from client.errors import InvalidRequestError
from client.messages import refused_inputs
from client.pipeline import map_in_order, until_accepted
from common.errors import UsageError

__all__ = ["LINES_PER_CALL", "answer_lines", "lines_from"]

LINES_PER_CALL = 32
MAX_CALLS = 8

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


async def lines_from(source: Sequence[str] | int, *, max_lines: int = LINES_PER_CALL) -> AsyncIterator[Block]:
    """Blocks of the given lines, or of those of the file with that descriptor.

    Raises:
        UsageError: a line of the file is no text; see `read_blocks`.
    """
    if isinstance(source, int):
        async for block in read_blocks(source, max_lines=max_lines):
            yield block
    else:
        for block in blocks_of(source, max_lines=max_lines):
            yield block


def answer_lines(
    blocks: AsyncIterator[Block],
    parse: Callable[[str], _Item],
    ask: Callable[[list[_Item]], Awaitable[list[_Answer]]],
    *,
    unit: str,
    timeout_s: float,
) -> AsyncGenerator[tuple[Block, list[_Answer | None]], None]:
    """Every block with the answers to its lines; None is the answer to an empty line, which nobody is asked.

    Args:
        blocks: The lines.
        parse: Makes a line what is asked; raises ValueError where it cannot, saying why.
        ask: One call.
        unit: What messages call a line.
        timeout_s: How long a call may be repeated while the server has no room.

    Raises:
        UsageError: a line is refused; it says which.
        CallError: the server cannot be reached.
    """

    async def answer(block: Block) -> tuple[Block, list[_Answer | None]]:
        places = [place for place, line in enumerate(block.lines) if line.strip()]
        answers: list[_Answer | None] = [None] * len(block.lines)
        if not places:
            return block, answers
        asked = [_parsed(parse, block, place, unit) for place in places]
        try:
            given = await until_accepted(lambda: ask(asked), timeout_s=timeout_s)
        except InvalidRequestError as error:
            # The server counts the inputs of one call; the caller counts lines.
            for index, description in refused_inputs(error.violations).items():
                raise UsageError(f"{unit} {block.start + places[index] + 1}: {description}") from error
            raise
        for place, each in zip(places, given, strict=True):
            answers[place] = each
        return block, answers

    return map_in_order(answer, blocks, max_in_flight=MAX_CALLS)


def _parsed(parse: Callable[[str], _Item], block: Block, place: int, unit: str) -> _Item:
    try:
        return parse(block.lines[place])
    except ValueError as error:
        raise UsageError(f"{unit} {block.start + place + 1}: {error}") from error
