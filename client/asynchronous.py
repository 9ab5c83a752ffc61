"""The asyncio client: the same calls as `client.blocking`, awaited. For one event loop, not for threads."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar, Unpack

import grpc
import grpc.aio
from dragoman.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    translation_pb2,
    translation_pb2_grpc,
)
from grpc_health.v1 import health_pb2

from client import messages
from client.channel import DEFAULT_TIMEOUT_S, WATCH_PAUSE_S, ChannelSettings, resolve_target
from client.errors import error_from_call
from client.results import DecodingOptions, GenerationSummary, ModelInfo, Translation, TranslationDelta

__all__ = ["AsyncClient", "AsyncGeneration", "AsyncTranslationStream"]

_Request = TypeVar("_Request")
_Message = TypeVar("_Message")


class AsyncClient:
    """Calls the models of a Dragoman server from asyncio code; make it inside a running loop.

        async with AsyncClient("localhost:8500") as client:
            [answer] = await client.translate("le 3 mars 2024", model="dates")

    Arguments, calls and errors are those of `client.Client`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wait_for_ready: bool = False,
        settings: ChannelSettings | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._wait_for_ready = wait_for_ready
        name, arguments = resolve_target(target), (settings or ChannelSettings()).arguments()
        self._channel = (
            grpc.aio.secure_channel(name, credentials, arguments)
            if credentials
            else grpc.aio.insecure_channel(name, arguments)
        )
        self._translation = translation_pb2_grpc.TranslationServiceStub(self._channel)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._watch = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    async def translate(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> list[Translation]:
        """Translate every text; see `client.Client.translate`."""
        request = messages.translate_request(texts, model=model, version=version, options=options)
        response = await self._unary(self._translation.Translate, request, timeout_s)
        return messages.translations_from(response)

    def stream_translate(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> "AsyncTranslationStream":
        """Translate every text and give the answers piece by piece; see `client.Client.stream_translate`."""
        request = messages.translate_request(texts, model=model, version=version, options=options)
        return AsyncTranslationStream(*self._stream(self._translation.StreamTranslate, request, timeout_s))

    def generate(
        self,
        prompt: str,
        *,
        model: str,
        version: str = "",
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> "AsyncGeneration":
        """Continue a prompt: an asynchronous iterator of text pieces; see `client.Client.generate`."""
        request = messages.generate_request(prompt, model=model, version=version, options=options)
        return AsyncGeneration(*self._stream(self._generation.Generate, request, timeout_s))

    async def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Every model the server holds, sorted by name, then by version."""
        response = await self._unary(self._models.ListModels, model_pb2.ListModelsRequest(), timeout_s)
        return [messages.model_from(model) for model in response.models]

    async def model(self, name: str, version: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """One model, in its highest version when `version` is left out.

        Raises:
            NotFoundError: the server does not hold it.
        """
        request = model_pb2.GetModelRequest(model=name, version=version)
        return messages.model_from(await self._unary(self._models.GetModel, request, timeout_s))

    async def wait_until_serving(self, *, timeout_s: float | None = None, service: str = "") -> None:
        """Wait until the server's health service says SERVING (`grpc.health.v1`).

        Raises:
            DeadlineExceededError: it did not within `timeout_s`.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        end_s = time.monotonic() + timeout_s
        with _call_errors(self.target, timeout_s):
            # The event that would end this wait is in another process.
            while not await self._saw_serving(service, end_s - time.monotonic()):  # noqa: ASYNC110
                await asyncio.sleep(WATCH_PAUSE_S)

    async def close(self) -> None:
        """Close the connections; calls that still run are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Message],
        request: _Request,
        timeout_s: float | None,
    ) -> _Message:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        with _call_errors(self.target, timeout_s):
            return await method(request, timeout=timeout_s, wait_for_ready=self._wait_for_ready)

    def _stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[_Request, _Message],
        request: _Request,
        timeout_s: float | None,
    ) -> tuple[grpc.aio.UnaryStreamCall[_Request, _Message], str, float]:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        call = method(request, timeout=timeout_s, wait_for_ready=self._wait_for_ready)
        return call, self.target, timeout_s

    async def _saw_serving(self, service: str, timeout_s: float) -> bool:
        """Watch the health until it is SERVING; False when the server went away instead."""
        call = self._watch(
            health_pb2.HealthCheckRequest(service=service), timeout=max(0.0, timeout_s), wait_for_ready=True
        )
        try:
            async for response in call:
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return True
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        finally:
            call.cancel()
        return False


class _AsyncStream(Generic[_Request, _Message]):
    """A server's stream of messages that is cancelled when it is closed or left."""

    def __init__(
        self, call: grpc.aio.UnaryStreamCall[_Request, _Message], target: str, timeout_s: float
    ) -> None:
        self._call = call
        self._messages = call.__aiter__()
        self._target = target
        self._timeout_s = timeout_s

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
        with _call_errors(self._target, self._timeout_s):
            return await anext(self._messages)


class AsyncTranslationStream(
    _AsyncStream[translation_pb2.TranslateRequest, translation_pb2.StreamTranslateResponse]
):
    """Pieces of translations as they are produced; those of several texts are interleaved."""

    def __aiter__(self) -> AsyncIterator[TranslationDelta]:
        return self

    async def __anext__(self) -> TranslationDelta:
        return messages.delta_from(await self._next_message())


class AsyncGeneration(_AsyncStream[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]):
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

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            response = await self._next_message()
            if response.HasField("summary"):
                self._summary = messages.summary_from(response.summary)
            if response.text_delta:
                return response.text_delta


@contextlib.contextmanager
def _call_errors(target: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise error_from_call(error, target=target, timeout_s=timeout_s) from error
