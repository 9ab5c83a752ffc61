"""Between the messages of dragoman.v1 and the runtime's own types."""

import time

from dragoman.v1 import decoding_pb2, translation_pb2

from server.lane import FinishReason
from server.runtime import Answer
from server.validation import Options

__all__ = ["deadline_s", "finish_reason", "options", "translation", "usage"]

_FINISH_REASONS = {
    FinishReason.END_OF_SEQUENCE: decoding_pb2.FINISH_REASON_END_OF_SEQUENCE,
    FinishReason.STOP_STRING: decoding_pb2.FINISH_REASON_STOP_STRING,
    FinishReason.LENGTH: decoding_pb2.FINISH_REASON_LENGTH,
}


def options(message: decoding_pb2.DecodingOptions) -> Options:
    """What the caller set; a field left out is None."""

    def given(field: str) -> bool:
        return message.HasField(field)  # type: ignore[arg-type]  # each name is one of the optional fields

    return Options(
        max_tokens=message.max_tokens if given("max_tokens") else None,
        min_tokens=message.min_tokens if given("min_tokens") else None,
        temperature=message.temperature if given("temperature") else None,
        top_k=message.top_k if given("top_k") else None,
        top_p=message.top_p if given("top_p") else None,
        seed=message.seed if given("seed") else None,
        stop=tuple(message.stop),
    )


def deadline_s(time_remaining_s: float | None) -> float | None:
    """gRPC's time remaining as a moment on `time.monotonic()`."""
    return None if time_remaining_s is None else time.monotonic() + time_remaining_s


def finish_reason(reason: FinishReason) -> decoding_pb2.FinishReason.ValueType:
    """The message's enum."""
    return _FINISH_REASONS[reason]


def usage(answer: Answer) -> decoding_pb2.TokenUsage:
    """What the answer cost."""
    return decoding_pb2.TokenUsage(
        input_tokens=answer.num_input_tokens, output_tokens=answer.num_output_tokens
    )


def translation(answer: Answer) -> translation_pb2.Translation:
    """One input's answer."""
    return translation_pb2.Translation(
        text=answer.text,
        finish_reason=finish_reason(answer.finish_reason),
        usage=usage(answer),
        log_probability=answer.log_probability,
    )
