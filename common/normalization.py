"""The definition of clean text (`dragoman.common.text`) as a tokenizer's normalizer."""

import re

from tokenizers import Regex, Tokenizer, normalizers

from dragoman.common.text import BLANK, INVISIBLE, KEPT_SPACES, REMOVED, SPACES

__all__ = ["cleaning_steps", "normalize", "prepare_tokenizer", "vocabulary_steps"]


def cleaning_steps() -> list[normalizers.Normalizer]:
    """The first steps of a tokenizer's normalizer. They do what `clean_text` does."""
    return [normalizers.Replace(Regex(REMOVED), ""), normalizers.Replace(Regex(f"[{SPACES}]"), " ")]


def vocabulary_steps(tokenizer: Tokenizer) -> list[normalizers.Normalizer]:
    """The last steps of a normalizer: they treat what this tokenizer's vocabulary lacks.

    White space that it lacks becomes a plain space, invisible characters that it lacks are removed. Otherwise the model
    would read the unknown token where a person sees a space, or nothing.
    """
    steps: list[normalizers.Normalizer] = []
    for characters, content in ((KEPT_SPACES + SPACES, " "), (INVISIBLE, "")):
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
    characters = re.findall(f"[{character_class}]", BLANK)
    return "".join(
        each for each in characters if unknown_id in tokenizer.encode(each, add_special_tokens=False).ids
    )
