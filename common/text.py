"""What every part takes as text: corpora, tokenizers, the server and evaluation clean it in the same way.

- Line feeds and tabs stay: in source code and in tables they mean something. Carriage returns before a line feed go,
  as do form feeds at the beginning or the end of a line.
- All other white space of Unicode becomes a plain space: no-break spaces, NEL, the line and paragraph separators.
- Control characters and byte order marks are removed: they are not meant to be text.
- Zero-width joiners and their like stay, because some scripts need them, unless a vocabulary lacks them.

`dragoman.common.normalization` keeps the definition in a tokenizer's normalizer, and so in `tokenizer.json` of each
run and bundle.
"""

import re
from typing import Final

__all__ = ["BLANK", "INVISIBLE", "KEPT_SPACES", "REMOVED", "SPACES", "clean_text", "is_blank"]

# Both Python's `re` and the regular expressions of `tokenizers` read these patterns.
# A page's end is one of white space, but where a line ends too it says nothing: in source code it would indent.
_CONTROL: Final = r"\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\ufeff"
# Runs at the ends of lines come first: a control character beside a form feed, which goes, may not keep that.
REMOVED: Final = rf"(?:\A|(?<=\n))[{_CONTROL}\u000b\u000c]+|[{_CONTROL}\u000b\u000c\r]+(?=\n)|[{_CONTROL}]"
SPACES: Final = "\u000b\u000c\r\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
KEPT_SPACES: Final = "\t\n"
# Characters that change how their neighbours are shown, or nothing at all.
INVISIBLE: Final = "\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"

_REMOVED_PATTERN: Final = re.compile(REMOVED)
_SPACES_PATTERN: Final = re.compile(f"[{SPACES}]")
BLANK: Final = "".join(
    re.findall(
        rf"{REMOVED}|[ {KEPT_SPACES}{SPACES}{INVISIBLE}]",
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
    return not text.strip(BLANK)
