"""Messages of dragoman.v1 to calls, and answers to messages."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, overload

from google.protobuf.message import Message

from dragoman.server.decoding.hypothesis import FinishReason
from dragoman.server.errors import AnswerTooLarge, FieldViolation, InvalidRequest
from dragoman.server.priority import Priority
from dragoman.server.requests.calls import Answer, OutputToken, Scored
from dragoman.server.requests.options import DEFAULT_OPTIONS, Options
from dragoman.server.requests.pace import Pace
from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

__all__ = [
    "FieldOfEach",
    "check_size",
    "deadline_s",
    "fill_summary",
    "fill_text_score",
    "fill_translation",
    "options",
    "priority",
]

_FINISH_REASONS = {
    FinishReason.END_OF_SEQUENCE: decoding_pb2.FINISH_REASON_END_OF_SEQUENCE,
    FinishReason.STOP_STRING: decoding_pb2.FINISH_REASON_STOP_STRING,
    FinishReason.LENGTH: decoding_pb2.FINISH_REASON_LENGTH,
}

_PRIORITIES: dict[int, Priority] = {
    decoding_pb2.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    decoding_pb2.PRIORITY_HIGH: Priority.HIGH,
    decoding_pb2.PRIORITY_NORMAL: Priority.NORMAL,
    decoding_pb2.PRIORITY_LOW: Priority.LOW,
}


def options(message: decoding_pb2.DecodingOptions) -> Options:
    """Returns the options that the caller set; a field left out has the default of `Options`.

    Lists stay the message's own: a message may hold millions of entries, which are refused by their number.
    """
    given: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    return Options(**given) if given else DEFAULT_OPTIONS


def priority(value: int) -> Priority:
    """Returns the priority that a request asks for.

    Raises:
        InvalidRequest: there is no such priority.
    """
    found = _PRIORITIES.get(value)
    if found is None:
        description = f"{value} is no priority: it is one of {', '.join(decoding_pb2.Priority.keys())}"
        raise InvalidRequest([FieldViolation("priority", description)])
    return found


class FieldOfEach(Sequence[str]):
    """One text of each message of a list, taken out when it is asked for."""

    def __init__(self, messages: Sequence[Message], field: str) -> None:
        self._messages = messages
        self._field = field

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "FieldOfEach": ...
    def __getitem__(self, index: int | slice) -> "str | FieldOfEach":
        if isinstance(index, slice):
            return FieldOfEach(self._messages[index], self._field)
        return str(getattr(self._messages[index], self._field))

    def __len__(self) -> int:
        return len(self._messages)


def deadline_s(time_remaining_s: float | None) -> float | None:
    """gRPC's time remaining as a moment on `time.monotonic()`."""
    return None if time_remaining_s is None else time.monotonic() + time_remaining_s


async def fill_translation(message: translation_pb2.Translation, answer: Answer) -> None:
    """Write one input's answer into `message`, in place: a large one is not copied."""
    pace = Pace()
    _fill_best(message, answer)
    message.source_tokens.extend(answer.source_tokens)
    await _fill_hypotheses(message.hypotheses, answer, pace)


async def fill_summary(message: generation_pb2.GenerationSummary, answer: Answer) -> None:
    """Write what is to be said of a generated text at its end into `message`."""
    pace = Pace()
    message.version = answer.version
    _fill_best(message, answer)
    await _fill_hypotheses(message.hypotheses, answer, pace)


def fill_text_score(message: decoding_pb2.TextScore, scored: Scored) -> None:
    """Write how probable a text is into `message`."""
    message.log_probability = scored.log_probability
    message.perplexity = scored.perplexity
    _fill_tokens(message.tokens, scored.tokens)


def check_size(message: Message, max_bytes: int | None) -> None:
    """Refuse to send a message that is too long.

    Raises:
        AnswerTooLarge: it is.
    """
    if max_bytes is not None and message.ByteSize() > max_bytes:
        raise AnswerTooLarge(max_bytes)


def _fill_best(
    message: translation_pb2.Translation | generation_pb2.GenerationSummary, answer: Answer
) -> None:
    best = answer.best
    if isinstance(message, translation_pb2.Translation):
        message.text = best.text
    message.finish_reason = _FINISH_REASONS[best.finish_reason]
    message.usage.input_tokens = answer.num_input_tokens
    message.usage.output_tokens = answer.num_output_tokens
    message.log_probability = best.log_probability
    message.score = best.score
    _fill_tokens(message.tokens, best.tokens)


async def _fill_hypotheses(messages: Any, answer: Answer, pace: Pace) -> None:
    await pace()  # the best one has its tokens
    if len(answer.texts) < 2:
        return
    for text in answer.texts:
        message = messages.add(
            text=text.text,
            finish_reason=_FINISH_REASONS[text.finish_reason],
            output_tokens=text.num_output_tokens,
            log_probability=text.log_probability,
            score=text.score,
        )
        _fill_tokens(message.tokens, text.tokens)
        await pace()


def _fill_tokens(messages: Any, tokens: Iterable[OutputToken]) -> None:
    for token in tokens:
        message = messages.add(
            id=token.token_id,
            token=token.token,
            log_probability=token.log_probability,
            source_index=token.source_index,
        )
        for token_id, spelling, log_probability in token.alternatives:
            message.alternatives.add(id=token_id, token=spelling, log_probability=log_probability)
