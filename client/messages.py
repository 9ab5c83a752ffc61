"""From the caller's plain data to the messages that a server is asked with."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from dragoman.client.errors import FieldViolation, InvalidRequestError
from dragoman.client.results import PRIORITIES, DecodingOptions, PriorityName
from dragoman.common.errors import UsageError
from dragoman.v1 import decoding_pb2, generation_pb2, model_pb2, translation_pb2

__all__ = [
    "checked_seconds",
    "checked_text",
    "checked_texts",
    "delete_alias_request",
    "generate_request",
    "get_model_request",
    "load_model_request",
    "names_answer_size",
    "names_list",
    "refused_inputs",
    "score_texts_request",
    "score_translations_request",
    "set_alias_request",
    "translate_request",
    "unload_model_request",
    "with_shifted_indexes",
]

_INPUT_FIELD = re.compile(r"(?:inputs|texts|pairs)\[(\d+)\](?:\.(source|target))?")
_INDEX = re.compile(r"\b(inputs|target_prefixes|texts|pairs)\[(\d+)\]")
_LISTS = frozenset({"inputs", "texts", "pairs"})
_ANSWER_SIZE = "options"
"""The field that is refused when the answers together turn out to be too large for a message."""
_MAX_SHOWN = 60
_MAX_SECONDS = 365 * 24 * 3600.0


def translate_request(
    texts: str | Sequence[str],
    *,
    model: str,
    version: str,
    options: DecodingOptions,
    target_prefixes: str | Sequence[str] = (),
    priority: PriorityName = "normal",
) -> translation_pb2.TranslateRequest:
    """The message for `texts`; one text counts as a list of one, and so does one prefix.

    Raises:
        TypeError: an argument is of the wrong type.
        UsageError: a text is no valid Unicode, or an option has a value its field cannot hold.
    """
    return translation_pb2.TranslateRequest(
        model=checked_text(model, "model"),
        version=checked_text(version, "version"),
        inputs=checked_texts(texts, "texts"),
        options=_options_message(options),
        target_prefixes=checked_texts(target_prefixes, "target_prefixes"),
        priority=_priority(priority),
    )


def generate_request(
    prompt: str, *, model: str, version: str, options: DecodingOptions, priority: PriorityName = "normal"
) -> generation_pb2.GenerateRequest:
    """The message for `prompt`.

    Raises:
        TypeError: an argument is of the wrong type.
        UsageError: the prompt is no valid Unicode, or an option has a value its field cannot hold.
    """
    return generation_pb2.GenerateRequest(
        model=checked_text(model, "model"),
        version=checked_text(version, "version"),
        prompt=checked_text(prompt, "prompt"),
        options=_options_message(options),
        priority=_priority(priority),
    )


def score_translations_request(
    sources: str | Sequence[str],
    targets: str | Sequence[str],
    *,
    model: str,
    version: str,
    num_alternatives: int,
    priority: PriorityName = "normal",
) -> translation_pb2.ScoreTranslationsRequest:
    """The message for pairs of a source and its target; one text counts as a list of one.

    Raises:
        TypeError: an argument is of the wrong type.
        UsageError: there are not as many sources as targets, a text is no valid Unicode, or the number of
            alternatives is none that its field can hold.
    """
    sources, targets = checked_texts(sources, "sources"), checked_texts(targets, "targets")
    if len(sources) != len(targets):
        raise UsageError(f"{len(sources)} sources and {len(targets)} targets are no pairs")
    request = translation_pb2.ScoreTranslationsRequest(
        model=checked_text(model, "model"),
        version=checked_text(version, "version"),
        pairs=[
            translation_pb2.ScoredPair(source=source, target=target)
            for source, target in zip(sources, targets, strict=True)
        ],
        priority=_priority(priority),
    )
    _set_field(request, "num_alternatives", num_alternatives)
    return request


def score_texts_request(
    texts: str | Sequence[str],
    *,
    model: str,
    version: str,
    num_alternatives: int,
    priority: PriorityName = "normal",
) -> generation_pb2.ScoreTextsRequest:
    """The message for `texts`; one text counts as a list of one.

    Raises:
        TypeError: an argument is of the wrong type.
        UsageError: a text is no valid Unicode, or the number of alternatives is none that its field can hold.
    """
    request = generation_pb2.ScoreTextsRequest(
        model=checked_text(model, "model"),
        version=checked_text(version, "version"),
        texts=checked_texts(texts, "texts"),
        priority=_priority(priority),
    )
    _set_field(request, "num_alternatives", num_alternatives)
    return request


def get_model_request(model: str, version: str) -> model_pb2.GetModelRequest:
    """The message that asks what a model is.

    Raises:
        TypeError: an argument is of the wrong type.
    """
    return model_pb2.GetModelRequest(
        model=checked_text(model, "name"), version=checked_text(version, "version")
    )


def load_model_request(model: str, version: str) -> model_pb2.LoadModelRequest:
    """The message that has a version served.

    Raises:
        TypeError: an argument is of the wrong type.
    """
    return model_pb2.LoadModelRequest(
        model=checked_text(model, "model"), version=checked_text(version, "version")
    )


def unload_model_request(model: str, version: str) -> model_pb2.UnloadModelRequest:
    """The message that has a version unloaded.

    Raises:
        TypeError: an argument is of the wrong type.
    """
    return model_pb2.UnloadModelRequest(
        model=checked_text(model, "model"), version=checked_text(version, "version")
    )


def delete_alias_request(model: str, alias: str) -> model_pb2.DeleteAliasRequest:
    """The message that lets an alias name nothing any more.

    Raises:
        TypeError: an argument is of the wrong type.
    """
    return model_pb2.DeleteAliasRequest(
        model=checked_text(model, "model"), alias=checked_text(alias, "alias")
    )


def set_alias_request(
    model: str, alias: str, version: str, traffic_percent: float
) -> model_pb2.SetAliasRequest:
    """The message that lets an alias name a version.

    Raises:
        TypeError: an argument is of the wrong type.
    """
    return model_pb2.SetAliasRequest(
        alias=model_pb2.ModelAlias(
            model=checked_text(model, "model"),
            alias=checked_text(alias, "alias"),
            version=checked_text(version, "version"),
            traffic_percent=traffic_percent,
        )
    )


def refused_inputs(violations: Iterable[FieldViolation]) -> dict[int, str]:
    """Return the reason for each text or pair of a request that was refused, by its index."""
    matches = [(_INPUT_FIELD.fullmatch(violation.field), violation) for violation in violations]
    return {
        int(match[1]): f"{match[2]}: {violation.description}" if match[2] else violation.description
        for match, violation in matches
        if match
    }


def names_list(violation: FieldViolation) -> bool:
    """Whether a list of texts as a whole was refused: it has too many texts."""
    return violation.field in _LISTS


def names_answer_size(violation: FieldViolation) -> bool:
    """Whether the answers together are too large for a message."""
    return violation.field == _ANSWER_SIZE


def with_shifted_indexes(error: InvalidRequestError, first: int) -> InvalidRequestError:
    """Return the same error with `first` added to each index: the call's first text was the caller's text `first`."""

    def shifted(text: str) -> str:
        return _INDEX.sub(lambda match: f"{match[1]}[{int(match[2]) + first}]", text)

    return type(error)(
        shifted(error.message),
        code=error.code,
        target=error.target,
        violations=tuple(FieldViolation(shifted(each.field), each.description) for each in error.violations),
        retry_delay_s=error.retry_delay_s,
        reason=error.reason,
        metadata=error.metadata,
    )


def checked_texts(texts: str | Iterable[str], name: str) -> list[str]:
    """The texts as a list; one text counts as a list of one. `name` is the argument's.

    Raises:
        TypeError: it is neither a text nor a list of texts.
        UsageError: a text is no valid Unicode.
    """
    if isinstance(texts, str):
        texts = [texts]
    elif isinstance(texts, bytes | bytearray | Mapping | Set) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a text or a list of texts, not {_shown(texts)}")
    return [checked_text(text, f"{name}[{index}]") for index, text in enumerate(texts)]


def checked_seconds(seconds: float, name: str) -> float:
    """The number of seconds, at most a year: gRPC takes a much longer time for one that has passed.

    `name` is the argument's. Infinity is a year.

    Raises:
        TypeError: it is no number.
        UsageError: it is negative, or NaN.
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise TypeError(f"{name} must be a number of seconds, not {_shown(seconds)}")
    if not seconds >= 0:
        raise UsageError(f"{name} must be a number of seconds from 0, not {seconds}")
    return min(seconds, _MAX_SECONDS)


def checked_text(text: str, name: str) -> str:
    """The text; `name` is the argument's.

    Raises:
        TypeError: it is no text.
        UsageError: it is no valid Unicode.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a text (str), not {_shown(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is not valid Unicode: {text!r}") from error
    return text


def _priority(name: PriorityName) -> "decoding_pb2.Priority.ValueType":
    if not isinstance(name, str):
        raise TypeError(f"priority must be a text (str), not {_shown(name)}")
    if name not in PRIORITIES:
        raise UsageError(f"priority = {name!r}: it is one of {', '.join(PRIORITIES)}")
    if name == "normal":  # a server that knows no priorities is told of none
        return decoding_pb2.PRIORITY_UNSPECIFIED
    return decoding_pb2.Priority.Value(f"PRIORITY_{name.upper()}")


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
    field = message.DESCRIPTOR.fields_by_name[name]
    try:
        if field.is_repeated:
            getattr(message, name).extend([value] if isinstance(value, str) else value)
        else:
            setattr(message, name, value)
    except TypeError as error:
        raise TypeError(f"{name} must be {_wanted(field)}, not {_shown(value)}") from error
    except ValueError as error:
        raise UsageError(f"{name} = {value!r}: {error}") from error


def _wanted(field: FieldDescriptor) -> str:
    """Returns the type that a field holds, in words."""
    if field.is_repeated:
        is_text = field.cpp_type == FieldDescriptor.CPPTYPE_STRING
        return "a text or a list of texts" if is_text else "a list of whole numbers"
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return "a number"
        case FieldDescriptor.CPPTYPE_BOOL:
            return "True or False"
        case _:
            return "a whole number"


def _shown(value: object) -> str:
    """A value that is of the wrong type, with its type."""
    if value is None:
        return "None"
    shown = repr(value)
    if len(shown) > _MAX_SHOWN:
        shown = f"{shown[:_MAX_SHOWN]}…"
    return f"{shown} ({type(value).__name__})"
