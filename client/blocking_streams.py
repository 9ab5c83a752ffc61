"""Answers that a blocking caller reads piece by piece, as the server produces them."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from dragoman.client import answers
from dragoman.client.batching import Batches
from dragoman.client.errors import InvalidRequestError, call_errors
from dragoman.client.results import GenerationSummary, TranslationDelta
from dragoman.v1 import generation_pb2, translation_pb2

__all__ = ["Generation", "StreamingCall", "TranslationStream"]

_Message = TypeVar("_Message")
_Message_co = TypeVar("_Message_co", covariant=True)


class StreamingCall(Protocol[_Message_co]):
    """A call of gRPC's whose answer comes in several messages."""

    def __next__(self) -> _Message_co: ...
    def cancel(self) -> bool:
        """Give up what has not come yet."""
        ...


class _Stream(Generic[_Message]):
    """A server's stream of messages that is cancelled when it is closed or left."""

    _call: StreamingCall[_Message] | None = None

    def __init__(self, call: StreamingCall[_Message], target: str, timeout_s: float) -> None:
        self._call = call
        self._target = target
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Give up what has not come yet; the server stops working on it."""
        if self._call is not None:  # it could not even begin
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
        assert self._call is not None
        with call_errors(self._target, self._timeout_s):
            return next(self._call)


Response = translation_pb2.StreamTranslateResponse


class TranslationStream(_Stream[Response]):
    """Pieces of translations as they are produced; those of several texts are interleaved.

    More texts than one call takes are translated in several calls, one after another.
    """

    def __init__(
        self,
        begin: Callable[[translation_pb2.TranslateRequest, float], StreamingCall[Response]],
        batches: Batches[translation_pb2.TranslateRequest],
        target: str,
    ) -> None:
        self._begin = begin
        self._batches = batches
        self._requests = iter(batches)
        self._has_begun = False
        super().__init__(begin(next(self._requests), batches.time_left_s), target, batches.timeout_s)

    def close(self) -> None:
        """Give up what has not come yet; the server stops working on it."""
        self._batches.end()
        super().close()

    def __iter__(self) -> Iterator[TranslationDelta]:
        return self

    def __next__(self) -> TranslationDelta:
        while True:
            try:
                message = self._next_message()
            except StopIteration:
                self._batches.accept()
            except InvalidRequestError as error:
                self._batches.refuse(error, has_begun=self._has_begun)
            except BaseException:
                self._batches.end()  # the answer has a gap: a caller that reads on gets nothing more
                raise
            else:
                self._has_begun = True
                return answers.delta_from(message, self._batches.first)
            self._has_begun = False
            self._call = self._begin(next(self._requests), self._batches.time_left_s)


class Generation(_Stream[generation_pb2.GenerateResponse]):
    """Pieces of text as they are produced; their concatenation is the answer, without the prompt."""

    _summary: GenerationSummary | None = None

    @property
    def summary(self) -> GenerationSummary:
        """The tokens that the text took, and why it ended.

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
