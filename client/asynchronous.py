"""The asyncio client: the same calls as `client.blocking`, awaited. For one event loop, not for threads."""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
import grpc.aio
from dragoman.v1 import (
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    translation_pb2_grpc,
)
from grpc_health.v1 import health_pb2

from client import answers, messages
from client.asynchronous_streams import AsyncGeneration, AsyncTranslationStream
from client.channel import DEFAULT_TIMEOUT_S, WATCH_PAUSE_S, ChannelSettings, resolve_target
from client.errors import call_errors
from client.results import DecodingOptions, ModelInfo, TextScore, Translation

__all__ = ["AsyncClient"]

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
        target_prefixes: str | Sequence[str] = (),
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> list[Translation]:
        """Translate every text; see `client.Client.translate`."""
        request = messages.translate_request(
            texts, model=model, version=version, options=options, target_prefixes=target_prefixes
        )
        return answers.translations_from(await self._unary(self._translation.Translate, request, timeout_s))

    def stream_translate(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        target_prefixes: str | Sequence[str] = (),
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> AsyncTranslationStream:
        """Translate every text and give the answers piece by piece; see `client.Client.stream_translate`."""
        request = messages.translate_request(
            texts, model=model, version=version, options=options, target_prefixes=target_prefixes
        )
        return AsyncTranslationStream(*self._stream(self._translation.StreamTranslate, request, timeout_s))

    async def score_translations(
        self,
        sources: str | Sequence[str],
        targets: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        num_alternatives: int = 0,
        timeout_s: float | None = None,
    ) -> list[TextScore]:
        """Tell how probable given translations are; see `client.Client.score_translations`."""
        request = messages.score_translations_request(
            sources, targets, model=model, version=version, num_alternatives=num_alternatives
        )
        response = await self._unary(self._translation.ScoreTranslations, request, timeout_s)
        return answers.scores_from(response)

    def generate(
        self,
        prompt: str,
        *,
        model: str,
        version: str = "",
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> AsyncGeneration:
        """Continue a prompt: an asynchronous iterator of text pieces; see `client.Client.generate`."""
        request = messages.generate_request(prompt, model=model, version=version, options=options)
        return AsyncGeneration(*self._stream(self._generation.Generate, request, timeout_s))

    async def score_texts(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        num_alternatives: int = 0,
        timeout_s: float | None = None,
    ) -> list[TextScore]:
        """Tell how probable given texts are to a generation model; see `client.Client.score_texts`."""
        request = messages.score_texts_request(
            texts, model=model, version=version, num_alternatives=num_alternatives
        )
        response = await self._unary(self._generation.ScoreTexts, request, timeout_s)
        return answers.scores_from(response)

    async def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Every model the server holds, sorted by name, then by version."""
        response = await self._unary(self._models.ListModels, model_pb2.ListModelsRequest(), timeout_s)
        return [answers.model_from(model) for model in response.models]

    async def model(self, name: str, version: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """One model, in its highest version when `version` is left out.

        Raises:
            NotFoundError: the server does not hold it.
        """
        request = model_pb2.GetModelRequest(model=name, version=version)
        return answers.model_from(await self._unary(self._models.GetModel, request, timeout_s))

    async def wait_until_serving(self, *, timeout_s: float | None = None, service: str = "") -> None:
        """Wait until the server's health service says SERVING (`grpc.health.v1`).

        Raises:
            DeadlineExceededError: it did not within `timeout_s`.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        end_s = time.monotonic() + timeout_s
        with call_errors(self.target, timeout_s):
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
        with call_errors(self.target, timeout_s):
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
