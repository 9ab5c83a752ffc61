"""What every part takes as text: corpora, tokenizers, the server and evaluation clean it in the same way.

- Line feeds and tabs stay: in source code and in tables they mean something. A carriage return before a line feed goes,
  as does a form feed at the beginning or the end of a line.
- All other white space of Unicode becomes a plain space: no-break spaces, NEL, the line and paragraph separators.
- Control characters and byte order marks are removed: they are not meant to be text.
- Zero-width joiners and their like stay, because some scripts need them, unless a vocabulary lacks them.

The definition is kept in a tokenizer's normalizer, and so in `tokenizer.json` of each run and bundle.
"""

import re
from typing import Final

from tokenizers import Regex, Tokenizer, normalizers

__all__ = [
    "clean_text",
    "cleaning_steps",
    "is_blank",
    "normalize",
    "prepare_tokenizer",
    "vocabulary_steps",
]

# Both Python's `re` and the regular expressions of `tokenizers` read these patterns.
# A page's end is one of white space, but where a line ends too it says nothing: in source code it would indent.
_REMOVED: Final = (
    r"[\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\ufeff]|\r(?=\n)"
    r"|(?:\A|(?<=\n))[\u000b\u000c]+|[\u000b\u000c]+(?=\n)"
)
_SPACES: Final = "\u000b\u000c\r\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_KEPT_SPACES: Final = "\t\n"
# Characters that change how their neighbours are shown, or nothing at all.
_INVISIBLE: Final = "\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"

_REMOVED_PATTERN: Final = re.compile(_REMOVED)
_SPACES_PATTERN: Final = re.compile(f"[{_SPACES}]")
_BLANK: Final = "".join(
    re.findall(
        rf"{_REMOVED}|[ {_KEPT_SPACES}{_SPACES}{_INVISIBLE}]",
        "".join(map(chr, range(0x3001))) + "\N{ZERO WIDTH NO-BREAK SPACE}",
    )
)


def clean_text(text: str) -> str:
    """`text` as every tokenizer reads it. Cleaning a text twice gives the same text."""
    if text.isascii() and text.isprintable():
        return text  # most lines, at a tenth of the time
    return _SPACES_PATTERN.sub(" ", _REMOVED_PATTERN.sub("", text))


def is_blank(text: str) -> bool:
    """Whether `text` holds nothing but white space and characters that nobody sees."""
    return not text.strip(_BLANK)


def cleaning_steps() -> list[normalizers.Normalizer]:
    """The first steps of a tokenizer's normalizer. They do what `clean_text` does."""
    return [normalizers.Replace(Regex(_REMOVED), ""), normalizers.Replace(Regex(f"[{_SPACES}]"), " ")]


def vocabulary_steps(tokenizer: Tokenizer) -> list[normalizers.Normalizer]:
    """The last steps of a normalizer: they treat what this tokenizer's vocabulary lacks.

    White space that it lacks becomes a plain space, invisible characters that it lacks are removed. Otherwise the model
    would read the unknown token where a person sees a space, or nothing.
    """
    steps: list[normalizers.Normalizer] = []
    for characters, content in ((_KEPT_SPACES + _SPACES, " "), (_INVISIBLE, "")):
        if lacking := _unknown_to(tokenizer, characters):
            steps.append(normalizers.Replace(Regex(f"[{lacking}]"), content))
    return steps


def prepare_tokenizer(tokenizer: Tokenizer) -> None:
    """Make a tokenizer that was just read from its file ready for use.

    A text that happens to hold "</s>" is text: without this it would become the end token. This is not in the file.
    A file that was written before the cleaning became a part of it gets the cleaning here. White space that its
    vocabulary knows stays as it is, because the model was trained with it.
    """
    tokenizer.encode_special_tokens = True
    own = tokenizer.normalizer
    if own is not None and own.normalize_str("a\0b") == "ab":
        return
    last = vocabulary_steps(tokenizer)
    removal, _ = cleaning_steps()
    tokenizer.normalizer = normalizers.Sequence([removal, *([] if own is None else [own]), *last])


def normalize(tokenizer: Tokenizer, text: str) -> str:
    """`text` as the model reads it, before it is cut into tokens."""
    return text if tokenizer.normalizer is None else str(tokenizer.normalizer.normalize_str(text))


def _unknown_to(tokenizer: Tokenizer, character_class: str) -> str:
    """Those characters of a class that the tokenizer reads as the unknown token."""
    unknown_id = tokenizer.token_to_id("<unk>")
    characters = re.findall(f"[{character_class}]", _BLANK)
    return "".join(
        each for each in characters if unknown_id in tokenizer.encode(each, add_special_tokens=False).ids
    )
