"""Texts of a call that decide on its output: stop strings, suppressed texts and the beginnings of translations.

The tokenizer's normalizer changes them as it changed all that the model was trained on, or they would never be found.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

from dragoman.common.normalization import normalize
from dragoman.server.decoding.joining import UnknownDecoderError, joining_of
from dragoman.server.errors import FieldViolation
from dragoman.server.models.served_model import ServedModel
from dragoman.server.requests.options import Options

__all__ = [
    "check_option_texts",
    "check_prefixes",
    "stop_strings",
    "suppressed_texts",
]

_SHOWN_CHARACTERS = 40
_MAX_NAMED = 3
"""Characters that a message names: a call's prefixes may hold a million, each to be looked up on the event loop."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def check_option_texts(model: ServedModel, options: Options) -> Iterator[FieldViolation]:
    """Yields the rules that the texts of options break. The options break no other rule."""
    for field, texts in (("stop", options.stop), ("suppressed_texts", options.suppressed_texts)):
        for index, text in enumerate(texts):
            if not normalize(model.tokenizer, text):
                description = f"{_shown(text)} holds only characters that are removed from every text"
                yield FieldViolation(f"options.{field}[{index}]", description)
    if not options.suppressed_texts:
        return
    try:
        joining = joining_of(model.tokenizer)
    except UnknownDecoderError as error:
        yield FieldViolation("options.suppressed_texts", f"cannot be had from {model.name!r}: {error}")
        return
    for index, text in enumerate(options.suppressed_texts):
        if joining.splits_characters and _REPLACEMENT in text:
            description = f"{_shown(text)} holds U+FFFD, which stands for any bytes that are no character"
            yield FieldViolation(f"options.suppressed_texts[{index}]", description)


def stop_strings(model: ServedModel, options: Options) -> tuple[str, ...]:
    """The stop strings as an output may hold them."""
    return tuple(normalize(model.tokenizer, text) for text in options.stop)


def suppressed_texts(model: ServedModel, options: Options) -> tuple[str, ...]:
    """The suppressed texts as an output might hold them."""
    return tuple(normalize(model.tokenizer, text) for text in options.suppressed_texts)


def check_prefixes(
    model: ServedModel, options: Options, prefixes: Sequence[str], encoded: Sequence[Sequence[int]]
) -> Iterator[FieldViolation]:
    """Yields the rules that the beginnings of translations break: they are kept whole, or refused."""
    if not prefixes:
        return
    suppressed = [normalize(model.tokenizer, text) for text in options.suppressed_texts]
    is_unknown = functools.cache(functools.partial(_is_unknown, model))
    for index, (prefix, token_ids) in enumerate(zip(prefixes, encoded, strict=True)):
        field = f"prefixes[{index}]"
        if model.manifest.special_tokens.unknown in token_ids:
            characters = dict.fromkeys(normalize(model.tokenizer, prefix))
            unknown = list(itertools.islice(filter(is_unknown, characters), _MAX_NAMED + 1))
            named = ", ".join(f"{each!r} (U+{ord(each):04X})" for each in unknown[:_MAX_NAMED])
            named += ", and more" if len(unknown) > _MAX_NAMED else ""
            yield FieldViolation(field, f"{_shown(prefix)} holds what the model's vocabulary lacks: {named}")
            continue
        text = model.tokenizer.decode(list(token_ids))
        for each in suppressed:
            if each and each in text:
                yield FieldViolation(
                    field, f"{_shown(prefix)} holds {each!r}, which options.suppressed_texts forbid"
                )


def _is_unknown(model: ServedModel, character: str) -> bool:
    token_ids = model.tokenizer.encode(character, add_special_tokens=False).ids
    return model.manifest.special_tokens.unknown in token_ids


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
