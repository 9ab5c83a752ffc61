"""How a tokenizer joins tokens to text, as far as that is known here."""

from enum import StrEnum

from tokenizers import Tokenizer

__all__ = ["Joining", "UnknownDecoderError", "joining_of"]


class UnknownDecoderError(ValueError):
    """A tokenizer joins tokens to text in a way that is not known here."""


class Joining(StrEnum):
    """The kinds of decoders, by their names in `tokenizers`."""

    BYTES = "ByteLevel"
    CHARACTERS = "Fuse"
    WORDS = "Metaspace"

    @property
    def splits_characters(self) -> bool:
        """Whether a token may be a part of a character."""
        return self is Joining.BYTES


def joining_of(tokenizer: Tokenizer) -> Joining:
    """How `tokenizer` joins tokens.

    Raises:
        UnknownDecoderError: in a way that is not known here.
    """
    decoder = type(tokenizer.decoder).__name__
    try:
        return Joining(decoder)
    except ValueError:
        raise UnknownDecoderError(f"tokens are joined by {decoder}, which is not known here") from None
