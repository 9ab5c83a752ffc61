"""Between the messages of dragoman.v1 and the runtime's own types."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, overload

from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2
from google.protobuf.message import Message

from server.calls import Answer, OutputToken, Scored, TextAnswer
from server.decoding.hypothesis import FinishReason
from server.validation import Options

__all__ = ["FieldOfEach", "deadline_s", "options", "summary", "text_score", "translation"]

_FINISH_REASONS = {
    FinishReason.END_OF_SEQUENCE: decoding_pb2.FINISH_REASON_END_OF_SEQUENCE,
    FinishReason.STOP_STRING: decoding_pb2.FINISH_REASON_STOP_STRING,
    FinishReason.LENGTH: decoding_pb2.FINISH_REASON_LENGTH,
}


def options(message: decoding_pb2.DecodingOptions) -> Options:
    """What the caller set, under the same names; a field left out has the default of `Options`.

    Lists stay the message's own: a message may hold millions of entries, which are refused by their number.
    """
    given: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    return Options(**given)


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


def translation(answer: Answer) -> translation_pb2.Translation:
    """One input's answer."""
    best = answer.best
    return translation_pb2.Translation(
        text=best.text,
        finish_reason=_FINISH_REASONS[best.finish_reason],
        usage=_usage(answer),
        log_probability=best.log_probability,
        score=best.score,
        tokens=_tokens(best.tokens),
        hypotheses=_hypotheses(answer),
        source_tokens=answer.source_tokens,
    )


def summary(answer: Answer) -> generation_pb2.GenerationSummary:
    """What is to be said of a generated text at its end."""
    best = answer.best
    return generation_pb2.GenerationSummary(
        version=answer.version,
        finish_reason=_FINISH_REASONS[best.finish_reason],
        usage=_usage(answer),
        log_probability=best.log_probability,
        score=best.score,
        tokens=_tokens(best.tokens),
        hypotheses=_hypotheses(answer),
    )


def text_score(scored: Scored) -> decoding_pb2.TextScore:
    """How probable a text is."""
    return decoding_pb2.TextScore(
        log_probability=scored.log_probability,
        perplexity=scored.perplexity,
        tokens=_tokens(scored.tokens),
    )


def _usage(answer: Answer) -> decoding_pb2.TokenUsage:
    return decoding_pb2.TokenUsage(
        input_tokens=answer.num_input_tokens, output_tokens=answer.num_output_tokens
    )


def _hypotheses(answer: Answer) -> list[decoding_pb2.Hypothesis]:
    return [_hypothesis(text) for text in answer.texts] if len(answer.texts) > 1 else []


def _hypothesis(text: TextAnswer) -> decoding_pb2.Hypothesis:
    return decoding_pb2.Hypothesis(
        text=text.text,
        finish_reason=_FINISH_REASONS[text.finish_reason],
        output_tokens=text.num_output_tokens,
        log_probability=text.log_probability,
        score=text.score,
        tokens=_tokens(text.tokens),
    )


def _tokens(tokens: Iterable[OutputToken]) -> list[decoding_pb2.OutputToken]:
    return [
        decoding_pb2.OutputToken(
            id=token.token_id,
            token=token.token,
            log_probability=token.log_probability,
            alternatives=[
                decoding_pb2.TokenAlternative(id=token_id, token=spelling, log_probability=log_probability)
                for token_id, spelling, log_probability in token.alternatives
            ],
            source_index=token.source_index,
        )
        for token in tokens
    ]
