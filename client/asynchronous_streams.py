"""Answers that an asyncio caller reads piece by piece, as the server produces them."""

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

import grpc.aio

from dragoman.client import answers
from dragoman.client.batching import Batches
from dragoman.client.errors import InvalidRequestError, call_errors
from dragoman.client.results import GenerationSummary, TranslationDelta
from dragoman.v1 import generation_pb2, translation_pb2

__all__ = ["AsyncGeneration", "AsyncTranslationStream"]

_Request = TypeVar("_Request")
_Message = TypeVar("_Message")


class _AsyncStream(Generic[_Request, _Message]):
    """A server's stream of messages that is cancelled when it is closed or left."""

    def __init__(
        self, call: grpc.aio.UnaryStreamCall[_Request, _Message], target: str, timeout_s: float
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._use(call)

    def _use(self, call: grpc.aio.UnaryStreamCall[_Request, _Message]) -> None:
        """Read from `call` from now on."""
        self._call = call
        self._messages = call.__aiter__()

    def close(self) -> None:
        """Give up what has not come yet; the server stops working on it."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _next_message(self) -> _Message:
        with call_errors(self._target, self._timeout_s):
            return await anext(self._messages)


Request = translation_pb2.TranslateRequest
Response = translation_pb2.StreamTranslateResponse


class AsyncTranslationStream(_AsyncStream[Request, Response]):
    """Pieces of translations as they are produced; those of several texts are interleaved.

    More texts than one call takes are translated in several calls, one after another.
    """

    def __init__(
        self,
        begin: "Callable[[Request, float], grpc.aio.UnaryStreamCall[Request, Response]]",
        batches: Batches[Request],
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

    def __aiter__(self) -> AsyncIterator[TranslationDelta]:
        return self

    async def __anext__(self) -> TranslationDelta:
        while True:
            try:
                message = await self._next_message()
            except StopAsyncIteration:
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
            request = next(self._requests, None)
            if request is None:
                raise StopAsyncIteration
            self._use(self._begin(request, self._batches.time_left_s))


class AsyncGeneration(_AsyncStream[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]):
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

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            response = await self._next_message()
            if response.HasField("summary"):
                self._summary = answers.summary_from(response.summary)
            if response.text_delta:
                return response.text_delta
