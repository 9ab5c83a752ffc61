"""From token ids to text as they come: whole characters only, and never past a stop string.

`tokenizers.decoders.DecodeStream` does the first half, but cannot be flushed at the end of a sequence and
trips over a prompt that ends in U+FFFD; so the same windowed method stands here in a few lines.
"""

import copy
from collections.abc import Sequence

from tokenizers import Tokenizer

__all__ = ["OutputText", "StopStrings", "decode_text"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_NUM_CONTEXT_TOKENS = 8
"""Tokens of a prompt that decide how the first tokens after it are spelled (a leading space, mostly)."""


def decode_text(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Returns the text of a whole sequence, without special tokens: what `OutputText` gives where nothing stops it."""
    return tokenizer.decode(token_ids, skip_special_tokens=True) if token_ids else ""


class _Detokenizer:
    """Decodes a growing sequence piece by piece; the pieces join to what decoding it whole would give.

    A token's text depends on its neighbours, so each piece is decoded after the one before it and the
    difference taken. Text that ends in U+FFFD is held: its last character may not be complete.
    """

    def __init__(self, tokenizer: Tokenizer, context_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # Tokens of the last piece, then tokens whose text has not been given yet.
        self._ids = list(context_ids[-_NUM_CONTEXT_TOKENS:])
        self._num_given = len(self._ids)
        self._given = self._decode(self._ids)

    def push(self, token_ids: Sequence[int], *, is_last: bool = False) -> str:
        """Text that these tokens complete."""
        self._ids += token_ids
        text = self._decode(self._ids)
        if len(text) <= len(self._given) or (text.endswith(_REPLACEMENT) and not is_last):
            return ""
        piece = text[len(self._given) :]
        if is_last:
            return piece
        del self._ids[: self._num_given]
        self._num_given = len(self._ids)
        self._given = self._decode(self._ids)
        return piece

    def fork(self) -> "_Detokenizer":
        twin = copy.copy(self)
        twin._ids = list(self._ids)  # noqa: SLF001 its own class
        return twin

    def _decode(self, token_ids: list[int]) -> str:
        return decode_text(self._tokenizer, token_ids)


class OutputText:
    """The text of one answer in the making.

    Attributes:
        stopped: a stop string appeared; the text ends before it and takes no more.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, context_ids: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        """`context_ids` is the prompt that the text continues; the text ends before any string of `stop`."""
        self.stopped = False
        self._detokenizer = _Detokenizer(tokenizer, context_ids)
        self._stop = tuple(stop)
        self._held = ""
        self._given: list[str] = []

    @property
    def text(self) -> str:
        """Everything given out so far."""
        return "".join(self._given)

    def push(self, token_ids: Sequence[int]) -> str:
        """Take new tokens; give the text that is certain, which may be none yet."""
        return self._give(self._detokenizer.push(token_ids), is_last=False)

    def fork(self) -> "OutputText":
        """The same text so far, to go on differently."""
        twin = copy.copy(self)
        twin._detokenizer = self._detokenizer.fork()  # noqa: SLF001 its own class
        twin._given = list(self._given)  # noqa: SLF001
        return twin

    def finish(self, token_ids: Sequence[int] = ()) -> str:
        """No more tokens will come after these: give what was held back and what they add."""
        return self._give(self._detokenizer.push(token_ids, is_last=True), is_last=True)

    def _give(self, new: str, *, is_last: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        starts = [start for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if starts:
            self.stopped = True
            certain = self._held[: min(starts)]
            self._held = ""
        else:
            num_certain = len(self._held) - (0 if is_last else _num_open(self._held, self._stop))
            certain, self._held = self._held[:num_certain], self._held[num_certain:]
        if certain:
            self._given.append(certain)
        return certain


class StopStrings:
    """The engine's stop condition for stop strings; lives on a lane's thread and sees one token at a time."""

    def __init__(self, tokenizer: Tokenizer, *, context_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._text = OutputText(tokenizer, context_ids=context_ids, stop=stop)

    def accept(self, token_id: int) -> bool:
        """Whether a stop string is complete with this token."""
        self._text.push([token_id])
        return self._text.stopped

    def fork(self) -> "StopStrings":
        """A copy for a hypothesis that goes on differently from here."""
        twin = copy.copy(self)
        twin._text = self._text.fork()  # noqa: SLF001 its own class
        return twin


def _num_open(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string."""
    longest = max((min(len(stop) - 1, len(text)) for stop in stops), default=0)
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(len(stop) > length and stop.startswith(end) for stop in stops):
            return length
    return 0
