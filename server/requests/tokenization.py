"""From texts to token ids for all calls of a server, without holding up its event loop.

A call's short texts are tokenised on the event loop: that takes less than a millisecond. Long texts, and many short
ones, go to one thread, a piece of a call at a time, so that calls take turns and the lanes keep their cores.
`encode` of `tokenizers` keeps the interpreter's lock all along. `encode_batch_fast` releases it, gives the same ids and
takes no longer, even for one short text.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenizers import Tokenizer

from dragoman.server.engine.rate import Backlog
from dragoman.server.errors import DeadlineExceeded, Overloaded
from dragoman.server.requests.traces import timed

__all__ = ["Tokenising"]

_TEXT_CHARACTERS = 16
"""The cost of a text before its first character, in characters: some 4 us."""
_MAX_INLINE_CHARACTERS = 2048
"""Tokenised on the event loop: a third of a millisecond to one, where characters are rare ones."""
_PIECE_CHARACTERS = 32_768
"""Tokenised at a time, unless one text is longer: some 30 ms, and 10 MB of what `tokenizers` keeps of each token."""
_MAX_WAITING_CHARACTERS = 8 * 1024 * 1024
"""The most characters that wait, of all calls together: two messages of the default size, ten seconds of one core."""


class Tokenising:
    """Tokenises texts of all calls; use it from one event loop."""

    def __init__(self) -> None:
        # One thread: a second one would only take a core from the lanes.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._backlog = Backlog()  # in characters

    async def encode(
        self,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        *,
        bare: bool = False,
        deadline_s: float | None = None,
    ) -> list[Sequence[int]]:
        """Token ids of each text.

        Args:
            tokenizer: of the model that gets them.
            texts: each of a bounded length.
            bare: leave out the special tokens that make a text an input.
            deadline_s: on `time.monotonic()`, or None.

        Raises:
            Overloaded: too many characters wait already.
            DeadlineExceeded: the deadline passed before all were tokenised.
        """
        with timed("tokenise"):
            return await self._encode(tokenizer, texts, bare, deadline_s)

    async def _encode(
        self, tokenizer: Tokenizer, texts: Sequence[str], bare: bool, deadline_s: float | None
    ) -> list[Sequence[int]]:
        if sum(map(_cost, texts)) <= _MAX_INLINE_CHARACTERS:
            return _encode(tokenizer, list(texts), bare)
        num_characters, backlog = sum(map(len, texts)), self._backlog
        if backlog.num_waiting + num_characters > _MAX_WAITING_CHARACTERS:
            waiting = f"{backlog.num_waiting} characters are waiting to be tokenised already"
            raise Overloaded(waiting, backlog.retry_delay_s)
        backlog.begin(num_characters, time.monotonic())
        try:
            return await self._encode_long(tokenizer, texts, bare, deadline_s)
        finally:
            backlog.end(num_characters, time.monotonic())

    async def _encode_long(
        self, tokenizer: Tokenizer, texts: Sequence[str], bare: bool, deadline_s: float | None
    ) -> list[Sequence[int]]:
        loop = asyncio.get_running_loop()
        encoded: list[Sequence[int]] = []
        for piece in _pieces(texts):
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise DeadlineExceeded("the deadline passed before the call's texts were tokenised")
            # The executor serves pieces in their order: those of other calls come in between.
            encoded += await loop.run_in_executor(self._executor, _encode, tokenizer, piece, bare)
        return encoded


def _encode(tokenizer: Tokenizer, texts: list[str], bare: bool) -> list[Sequence[int]]:
    return [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=not bare)]


def _cost(text: str) -> int:
    """Returns what a text costs, in characters."""
    return _TEXT_CHARACTERS + len(text)


def _pieces(texts: Sequence[str]) -> Iterator[list[str]]:
    piece: list[str] = []
    cost = 0
    for text in texts:
        if piece and cost + _cost(text) > _PIECE_CHARACTERS:
            yield piece
            piece, cost = [], 0
        piece.append(text)
        cost += _cost(text)
    yield piece
