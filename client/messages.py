"""Between the caller's plain data and the messages of `dragoman.v1`."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from dragoman.v1 import decoding_pb2, generation_pb2, model_pb2, translation_pb2
from google.protobuf import json_format

from client.errors import FieldViolation
from client.results import (
    DecodingOptions,
    FinishReason,
    GenerationSummary,
    ModelInfo,
    QualityFigure,
    Task,
    Translation,
    TranslationDelta,
)
from common.errors import UsageError

__all__ = [
    "delta_from",
    "generate_request",
    "model_from",
    "refused_inputs",
    "summary_from",
    "translate_request",
    "translations_from",
]

_INPUT_FIELD = re.compile(r"inputs\[(\d+)\]")

_FINISH_REASONS = {
    decoding_pb2.FINISH_REASON_END_OF_SEQUENCE: FinishReason.END_OF_SEQUENCE,
    decoding_pb2.FINISH_REASON_STOP_STRING: FinishReason.STOP_STRING,
    decoding_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
_TASKS = {
    model_pb2.TASK_TRANSLATION: Task.TRANSLATION,
    model_pb2.TASK_GENERATION: Task.GENERATION,
}


def translate_request(
    texts: str | Sequence[str], *, model: str, version: str, options: DecodingOptions
) -> translation_pb2.TranslateRequest:
    """The message for `texts`; one text counts as a list of one.

    Raises:
        UsageError: a text is no valid Unicode, or an option has a value its field cannot hold.
    """
    inputs = [texts] if isinstance(texts, str) else list(texts)
    for index, text in enumerate(inputs):
        _check_unicode(text, f"inputs[{index}]")
    return translation_pb2.TranslateRequest(
        model=model, version=version, inputs=inputs, options=_options_message(options)
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


def translations_from(response: translation_pb2.TranslateResponse) -> list[Translation]:
    """The translations, in the order of the inputs."""
    return [_translation_from(translation, response.version) for translation in response.translations]


def delta_from(response: translation_pb2.StreamTranslateResponse) -> TranslationDelta:
    """A piece of a streamed translation."""
    whole = _translation_from(response.translation, None) if response.HasField("translation") else None
    return TranslationDelta(index=response.index, text=response.text_delta, translation=whole)


def summary_from(summary: generation_pb2.GenerationSummary) -> GenerationSummary:
    """The summary of a generated text."""
    return GenerationSummary(
        finish_reason=_FINISH_REASONS.get(summary.finish_reason, FinishReason.UNSPECIFIED),
        num_input_tokens=summary.usage.input_tokens,
        num_output_tokens=summary.usage.output_tokens,
        log_probability=summary.log_probability,
        version=summary.version,
    )


def model_from(model: model_pb2.Model) -> ModelInfo:
    """A model that the server holds."""
    return ModelInfo(
        name=model.name,
        version=model.version,
        task=_TASKS.get(model.task, Task.UNSPECIFIED),
        precision=model.precision,
        provider=model.provider,
        num_parameters=model.num_parameters,
        max_input_tokens=model.max_input_tokens,
        max_output_tokens=model.max_output_tokens,
        provenance=_with_integers(json_format.MessageToDict(model.provenance)),
        quality=tuple(QualityFigure(q.metric, q.value, q.num_examples, q.data) for q in model.quality),
    )


def refused_inputs(violations: Iterable[FieldViolation]) -> dict[int, str]:
    """Which inputs of a `TranslateRequest` were refused, by index, and why."""
    matches = [(_INPUT_FIELD.fullmatch(violation.field), violation) for violation in violations]
    return {int(match[1]): violation.description for match, violation in matches if match}


def _translation_from(translation: translation_pb2.Translation, version: str | None) -> Translation:
    return Translation(
        text=translation.text,
        finish_reason=_FINISH_REASONS.get(translation.finish_reason, FinishReason.UNSPECIFIED),
        num_input_tokens=translation.usage.input_tokens,
        num_output_tokens=translation.usage.output_tokens,
        log_probability=translation.log_probability,
        version=version,
    )


def _with_integers(value: Any) -> Any:
    """`google.protobuf.Struct` knows no whole numbers: 500 arrives as 500.0."""
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _options_message(options: DecodingOptions) -> decoding_pb2.DecodingOptions:
    message = decoding_pb2.DecodingOptions()
    for name, value in options.items():
        if name not in DecodingOptions.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}")
        if value is not None:
            _set_option(message, name, value)
    return message


def _set_option(message: decoding_pb2.DecodingOptions, name: str, value: Any) -> None:
    # The server judges what a value means; here only what the field's type cannot hold is refused.
    try:
        if name == "stop":
            message.stop.extend([value] if isinstance(value, str) else value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} = {value!r}: {error}") from error


def _check_unicode(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{field} is not valid Unicode: {text!r}") from error
