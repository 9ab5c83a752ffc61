"""Keeping texts out of what is produced, however they are cut into tokens.

Everything is compared as bytes of UTF-8: a text is in another one exactly where its bytes are, also where tokens hold
parts of characters.
"""

import bisect
import functools
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dragoman.server.decoding.joining import Joining, joining_of

__all__ = ["SuppressedTexts", "TokenTexts", "Vocabulary"]

_BETWEEN: Final = 0xFF  # stands between tokens: no byte of UTF-8 has this value
_WORD_BEGIN: Final = "\N{LOWER ONE EIGHTH BLOCK}"


class TokenTexts:
    """The text that each token of a vocabulary adds, laid out for looking at all of them at once.

    Attributes:
        texts: by token id. Special tokens add nothing.
        longest: bytes of the longest of them.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = tuple(texts)
        self.longest = max(map(len, self.texts), default=0)
        separator = bytes([_BETWEEN])
        self._bytes = np.frombuffer(separator.join(self.texts) + separator, np.uint8)
        self._owners = np.repeat(
            np.arange(len(self.texts), dtype=np.int32), [len(text) + 1 for text in self.texts]
        )
        order = sorted(range(len(self.texts)), key=self.texts.__getitem__)
        self._order = np.array(order, np.int64)
        self._sorted = [self.texts[token_id] for token_id in order]

    def holding(self, text: bytes) -> NDArray[np.int32]:
        """Ids of the tokens that hold all of `text`; one may come several times."""
        places = np.flatnonzero(self._bytes[: len(self._bytes) - len(text) + 1] == text[0])
        for offset, byte in enumerate(text[1:], start=1):
            if not places.size:
                break
            places = places[self._bytes[places + offset] == byte]
        return self._owners[places]

    def beginning_with(self, text: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that begin with `text`."""
        after = text[:-1] + bytes([text[-1] + 1])  # no byte of UTF-8 is the highest one
        return self._order[bisect.bisect_left(self._sorted, text) : bisect.bisect_left(self._sorted, after)]


class Vocabulary(NamedTuple):
    """A vocabulary's texts.

    Attributes:
        tokens: within a text.
        first: at the beginning of a text, where a word's leading space is left out.
    """

    tokens: TokenTexts
    first: TokenTexts

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Returns the texts that the tokens of `tokenizer` add.

        Raises:
            UnknownDecoderError: it joins them in a way that is not known here.
        """
        joining = joining_of(tokenizer)
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        ids = range(tokenizer.get_vocab_size())
        tokens = ["" if (token := tokenizer.id_to_token(i) or "") in special else token for i in ids]
        match joining:
            case Joining.BYTES:
                bytes_of = _byte_alphabet()
                texts = TokenTexts([bytes(bytes_of[each] for each in token) for token in tokens])
                return cls(texts, texts)
            case Joining.CHARACTERS:
                texts = TokenTexts([token.encode() for token in tokens])
                return cls(texts, texts)
            case Joining.WORDS:
                texts = TokenTexts([token.replace(_WORD_BEGIN, " ").encode() for token in tokens])
                first = TokenTexts([token.replace(_WORD_BEGIN, "").encode() for token in tokens])
                return cls(texts, first)


class SuppressedTexts:
    """Texts that an output does not hold. Made once for a call, for the use of any thread."""

    def __init__(self, vocabulary: Vocabulary, texts: Sequence[str]) -> None:
        """`texts` are not empty, and look as the tokenizer leaves them."""
        self._vocabulary = vocabulary
        wanted = {text.encode() for text in texts}
        # What holds another of them needs no attention of its own.
        self._texts = [text for text in wanted if not any(other in text for other in wanted - {text})]
        self._longest = max(map(len, self._texts), default=0)
        self._ending: dict[bytes, NDArray[np.int64]] = {}

    def forbid(self, row: NDArray[np.float32], token_ids: Sequence[int], *, continues: bool) -> None:
        """Make impossible in a row (V,) all tokens that would complete a text after the output `token_ids`.

        `continues` says that the output goes on from a text, so that its first word keeps its leading space.
        """
        if not token_ids and not continues:
            row[self._whole_at_first] = -np.inf
            return
        row[self._whole] = -np.inf
        tail = self._tail(token_ids, continues=continues)
        if not tail:
            return
        for number, length in self._open.get(tail[-1], ()):
            text = self._texts[number]
            if tail.endswith(text[:length]):
                row[self._completing(text[length:])] = -np.inf

    def _completing(self, rest: bytes) -> NDArray[np.int64]:
        token_ids = self._ending.get(rest)
        if token_ids is None:
            token_ids = self._ending[rest] = self._vocabulary.tokens.beginning_with(rest)
        return token_ids

    def _tail(self, token_ids: Sequence[int], *, continues: bool) -> bytes:
        """The end of the output, as much of it as a text may begin with."""
        texts, parts, wanted = self._vocabulary.tokens.texts, list[bytes](), self._longest - 1
        for position in range(len(token_ids) - 1, -1, -1):
            if wanted <= 0:
                break
            source = texts if position or continues else self._vocabulary.first.texts
            parts.append(source[token_ids[position]])
            wanted -= len(parts[-1])
        return b"".join(reversed(parts))

    @functools.cached_property
    def _whole(self) -> NDArray[np.int64]:
        """Tokens that hold a whole text."""
        return self._holding_any(self._vocabulary.tokens)

    @functools.cached_property
    def _whole_at_first(self) -> NDArray[np.int64]:
        return self._holding_any(self._vocabulary.first)

    def _holding_any(self, tokens: TokenTexts) -> NDArray[np.int64]:
        holds = np.zeros(len(tokens.texts), np.bool_)
        for text in self._texts:
            holds[tokens.holding(text)] = True
        return np.flatnonzero(holds)

    @functools.cached_property
    def _open(self) -> dict[int, list[tuple[int, int]]]:
        """The texts that may have begun, and how much of each, so that one token ends it; by the output's last byte."""
        places: dict[int, list[tuple[int, int]]] = {}
        for number, text in enumerate(self._texts):
            for length in range(max(1, len(text) - self._vocabulary.tokens.longest), len(text)):
                places.setdefault(text[length - 1], []).append((number, length))
        return places


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte (Radford et al. 2019): itself if it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(others)}
