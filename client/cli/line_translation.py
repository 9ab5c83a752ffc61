"""Line in, line out: a stream of lines through a translation model, in order and in constant memory."""

import contextlib
import sys
from collections.abc import AsyncIterator, Sequence

from client.asynchronous import AsyncClient
from client.cli.lines import Block, blocks_of, read_blocks
from client.cli.output import write_text
from client.errors import InvalidRequestError
from client.messages import refused_inputs
from client.pipeline import map_in_order, until_accepted
from client.results import DecodingOptions
from common.errors import UsageError

__all__ = ["LineTranslator"]

LINES_PER_CALL = 32
MAX_CALLS = 8


class LineTranslator:
    """Translates lines with one model.

    Args:
        model: The model's name.
        version: Its version; empty is the highest.
        timeout_s: Deadline of each call, and how long a call may be repeated while the server has no room.
        options: Decoding options of every call.
    """

    def __init__(self, *, model: str, version: str, timeout_s: float, options: DecodingOptions) -> None:
        self._model = model
        self._version = version
        self._timeout_s = timeout_s
        self._options = options

    async def run(self, target: str, texts: Sequence[str] | None) -> None:
        """Translate `texts`, or the lines of standard input when there are none, to standard output.

        Raises:
            UsageError: a line is refused; it says which.
            CallError: the server cannot be reached.
        """
        async with AsyncClient(target, timeout_s=self._timeout_s) as client:

            async def translate(block: Block) -> list[str]:
                return await self._translate(client, block, "text" if texts else "line")

            answers = map_in_order(translate, _blocks(texts), max_in_flight=MAX_CALLS)
            async with contextlib.aclosing(answers):
                async for lines in answers:
                    write_text("".join(f"{line}\n" for line in lines))

    async def _translate(self, client: AsyncClient, block: Block, unit: str) -> list[str]:
        places = [place for place, line in enumerate(block.lines) if line.strip()]
        lines = [""] * len(block.lines)
        if not places:
            return lines
        asked = [block.lines[place] for place in places]
        try:
            answers = await until_accepted(
                lambda: client.translate(asked, model=self._model, version=self._version, **self._options),
                timeout_s=self._timeout_s,
            )
        except InvalidRequestError as error:
            # The server counts the inputs of one call; the caller counts lines.
            for index, description in refused_inputs(error.violations).items():
                raise UsageError(f"{unit} {block.start + places[index] + 1}: {description}") from error
            raise
        for place, answer in zip(places, answers, strict=True):
            lines[place] = " ".join(answer.text.splitlines())  # one line, whatever the model made of it
        return lines


async def _blocks(texts: Sequence[str] | None) -> AsyncIterator[Block]:
    if texts:
        for block in blocks_of(texts, max_lines=LINES_PER_CALL):
            yield block
    else:
        async for block in read_blocks(sys.stdin.fileno(), max_lines=LINES_PER_CALL):
            yield block
