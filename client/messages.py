"""From the caller's plain data to the messages that a server is asked with."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

from client.errors import FieldViolation
from client.results import DecodingOptions
from common.errors import UsageError

__all__ = [
    "generate_request",
    "refused_inputs",
    "score_texts_request",
    "score_translations_request",
    "translate_request",
]

_INPUT_FIELD = re.compile(r"(?:inputs|texts|pairs)\[(\d+)\](?:\.(source|target))?")
_REPEATED_OPTIONS = ("stop", "suppressed_texts", "suppressed_token_ids")


def translate_request(
    texts: str | Sequence[str],
    *,
    model: str,
    version: str,
    options: DecodingOptions,
    target_prefixes: str | Sequence[str] = (),
) -> translation_pb2.TranslateRequest:
    """The message for `texts`; one text counts as a list of one, and so does one prefix.

    Raises:
        UsageError: a text is no valid Unicode, or an option has a value its field cannot hold.
    """
    return translation_pb2.TranslateRequest(
        model=model,
        version=version,
        inputs=_checked_texts(texts, "inputs"),
        options=_options_message(options),
        target_prefixes=_checked_texts(target_prefixes, "target_prefixes"),
    )


def generate_request(
    prompt: str, *, model: str, version: str, options: DecodingOptions
) -> generation_pb2.GenerateRequest:
    """The message for `prompt`.

    Raises:
        UsageError: the prompt is no valid Unicode, or an option has a value its field cannot hold.
    """
    _check_unicode(prompt, "prompt")
    return generation_pb2.GenerateRequest(
        model=model, version=version, prompt=prompt, options=_options_message(options)
    )


def score_translations_request(
    sources: str | Sequence[str],
    targets: str | Sequence[str],
    *,
    model: str,
    version: str,
    num_alternatives: int,
) -> translation_pb2.ScoreTranslationsRequest:
    """The message for pairs of a source and its target; one text counts as a list of one.

    Raises:
        UsageError: there are not as many sources as targets, a text is no valid Unicode, or the number of
            alternatives is none that its field can hold.
    """
    sources, targets = _checked_texts(sources, "sources"), _checked_texts(targets, "targets")
    if len(sources) != len(targets):
        raise UsageError(f"{len(sources)} sources and {len(targets)} targets are no pairs")
    request = translation_pb2.ScoreTranslationsRequest(
        model=model,
        version=version,
        pairs=[
            translation_pb2.ScoredPair(source=source, target=target)
            for source, target in zip(sources, targets, strict=True)
        ],
    )
    _set_field(request, "num_alternatives", num_alternatives)
    return request


def score_texts_request(
    texts: str | Sequence[str], *, model: str, version: str, num_alternatives: int
) -> generation_pb2.ScoreTextsRequest:
    """The message for `texts`; one text counts as a list of one.

    Raises:
        UsageError: a text is no valid Unicode, or the number of alternatives is none that its field can hold.
    """
    request = generation_pb2.ScoreTextsRequest(
        model=model, version=version, texts=_checked_texts(texts, "texts")
    )
    _set_field(request, "num_alternatives", num_alternatives)
    return request


def refused_inputs(violations: Iterable[FieldViolation]) -> dict[int, str]:
    """Which of the texts or pairs of a request were refused, by index, and why."""
    matches = [(_INPUT_FIELD.fullmatch(violation.field), violation) for violation in violations]
    return {
        int(match[1]): f"{match[2]}: {violation.description}" if match[2] else violation.description
        for match, violation in matches
        if match
    }


def _options_message(options: DecodingOptions) -> decoding_pb2.DecodingOptions:
    message = decoding_pb2.DecodingOptions()
    for name, value in options.items():
        if name not in DecodingOptions.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}")
        if value is not None:
            _set_field(message, name, value)
    return message


def _set_field(
    message: decoding_pb2.DecodingOptions
    | translation_pb2.ScoreTranslationsRequest
    | generation_pb2.ScoreTextsRequest,
    name: str,
    value: Any,
) -> None:
    # The server judges what a value means; here only what the field's type cannot hold is refused.
    try:
        if name in _REPEATED_OPTIONS:
            getattr(message, name).extend([value] if isinstance(value, str) else value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} = {value!r}: {error}") from error


def _checked_texts(texts: str | Sequence[str], field: str) -> list[str]:
    checked = [texts] if isinstance(texts, str) else list(texts)
    for index, text in enumerate(checked):
        _check_unicode(text, f"{field}[{index}]")
    return checked


def _check_unicode(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{field} is not valid Unicode: {text!r}") from error
