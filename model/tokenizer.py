"""Tokenizers: text to token ids and back, through the `tokenizers` library, saved as one tokenizer.json."""

from typing import Final

__all__ = ["BEGIN_ID", "END_ID", "PADDING_ID", "SPECIAL_TOKENS", "UNKNOWN_ID"]

PADDING_ID: Final = 0
UNKNOWN_ID: Final = 1
BEGIN_ID: Final = 2
END_ID: Final = 3
SPECIAL_TOKENS: Final = ("<pad>", "<unk>", "<s>", "</s>")  # in the order of their ids
