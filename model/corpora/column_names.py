"""Names that columns of pairs have in the world: what tells the header of a table from its first pair."""

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["is_header"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ROLES: Final = _words(
    "answer completion context document english_text hypothesis id index input input_text instruction key label lang "
    "language mt number original original_text output output_text prediction premise prompt question raw ref "
    "reference response segment sent sentence sentence1 sentence2 source source_text src src_text summary tar target "
    "target_text text text1 text2 tgt tgt_text translated translation trg value"
)
_LANGUAGES: Final = _words(
    "arabic bengali chinese czech danish dutch english finnish french german greek hebrew hindi hungarian indonesian "
    "italian japanese korean latin norwegian persian polish portuguese romanian russian spanish swahili swedish thai "
    "turkish ukrainian urdu vietnamese"
)
# ISO 639-1, of the languages above and some more; with a region or a script as in BCP 47: `pt-BR`, `zh_Hans`.
_CODES: Final = _words(
    "af ar az be bg bn bs ca cs cy da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko "
    "la lt lv mk ml mn mr ms my nb ne nl nn no pa pl ps pt ro ru si sk sl sq sr sv sw ta te th tl tr uk ur uz vi xh yo "
    "zh zu"
)
# `it` and `es`: the codes of Italian and Spanish, and the first pair of a list of English and German words.
_CODES_LIKE_WORDS: Final = _words("be da de el es et he hi id is it la my ne no si ta te")
_CODE: Final = re.compile(r"([a-z]{2})(?:[-_](?:[A-Z]{2}|[a-z]{2}|[A-Z][a-z]{3}|[0-9]{3}))?")


def is_header(cells: Sequence[str]) -> bool:
    """Whether `cells`, of the first row of a table, name its columns: all are known names, each another one.

    A first pair of texts may be two such names too, so the caller must say what it leaves out.
    """
    names = [cell.strip().strip("\"'#").strip() for cell in cells]
    different = {name.lower() for name in names}
    return (
        len(names) > 1
        and len(different) == len(names)
        and all(map(_is_name, names))
        and not different <= _CODES_LIKE_WORDS
    )


def _is_name(text: str) -> bool:
    words = re.sub(r"[ .-]+", "_", text.lower())
    code = _CODE.fullmatch(text)
    return (
        words in _ROLES
        or words in _LANGUAGES
        or (code is not None and code[1] in _CODES)
        # `source_en`, `english_sentence`
        or ("_" in words and all(part in _ROLES | _LANGUAGES | _CODES for part in words.split("_")))
    )
