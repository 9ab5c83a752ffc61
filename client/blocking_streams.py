"""Answers that a blocking caller reads piece by piece, as the server produces them."""

from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from dragoman.v1 import generation_pb2, translation_pb2

from client import answers
from client.errors import call_errors
from client.results import GenerationSummary, TranslationDelta

__all__ = ["Generation", "TranslationStream"]

_Message = TypeVar("_Message")
_Message_co = TypeVar("_Message_co", covariant=True)


class _Call(Protocol[_Message_co]):
    def __next__(self) -> _Message_co: ...
    def cancel(self) -> bool: ...


class _Stream(Generic[_Message]):
    """A server's stream of messages that is cancelled when it is closed or left."""

    def __init__(self, call: _Call[_Message], target: str, timeout_s: float) -> None:
        self._call = call
        self._target = target
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Give up what has not come yet; the server stops working on it."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _next_message(self) -> _Message:
        with call_errors(self._target, self._timeout_s):
            return next(self._call)


class TranslationStream(_Stream[translation_pb2.StreamTranslateResponse]):
    """Pieces of translations as they are produced; those of several texts are interleaved."""

    def __iter__(self) -> Iterator[TranslationDelta]:
        return self

    def __next__(self) -> TranslationDelta:
        return answers.delta_from(self._next_message())


class Generation(_Stream[generation_pb2.GenerateResponse]):
    """Pieces of text as they are produced; their concatenation is the answer, without the prompt."""

    _summary: GenerationSummary | None = None

    @property
    def summary(self) -> GenerationSummary:
        """What the text cost and why it ended.

        Raises:
            RuntimeError: the stream has not been read to its end.
        """
        if self._summary is None:
            raise RuntimeError("a generation has its summary only after its last piece was read")
        return self._summary

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            response = self._next_message()
            if response.HasField("summary"):
                self._summary = answers.summary_from(response.summary)
            if response.text_delta:
                return response.text_delta
