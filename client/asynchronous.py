"""The asyncio client: the same calls as `dragoman.client.blocking`, awaited. For one event loop, not for threads."""

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from dragoman.client import answers, messages
from dragoman.client.asynchronous_streams import AsyncGeneration, AsyncTranslationStream
from dragoman.client.batching import (
    Batches,
    KnownSizes,
    score_text_batches,
    score_translation_batches,
    translate_batches,
)
from dragoman.client.channel import DEFAULT_TIMEOUT_S, WATCH_PAUSE_S, ChannelSettings, resolve_target
from dragoman.client.credentials import Credentials, Protection, TokenSource
from dragoman.client.errors import InvalidRequestError, call_errors
from dragoman.client.results import (
    DecodingOptions,
    ModelInfo,
    ModelList,
    PriorityName,
    TextScore,
    Translation,
)
from dragoman.client.trace_context import trace_metadata
from dragoman.v1 import (
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    translation_pb2,
    translation_pb2_grpc,
)

__all__ = ["AsyncClient"]

_Request = TypeVar("_Request")
_Message = TypeVar("_Message")
_Answer = TypeVar("_Answer")


class AsyncClient:
    """Calls the models of a Dragoman server from asyncio code; make it inside a running loop.

        async with AsyncClient("localhost:8500") as client:
            [answer] = await client.translate("le 3 mars 2024", model="dates")

    Arguments, calls and errors are those of `dragoman.Client`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wait_for_ready: bool = False,
        settings: ChannelSettings | None = None,
        credentials: Credentials | grpc.ChannelCredentials | None = None,
    ) -> None:
        _check_loop_runs()
        name = resolve_target(messages.checked_text(target, "target"))
        arguments = (settings or ChannelSettings()).arguments(name)
        protection = Protection.of(credentials, name)
        arguments += protection.arguments
        channel = (
            grpc.aio.secure_channel(name, protection.channel, arguments)
            if protection.channel
            else grpc.aio.insecure_channel(name, arguments)
        )
        self._use(channel, target, protection.token, timeout_s=timeout_s, wait_for_ready=wait_for_ready)

    @classmethod
    def over(cls, channel: grpc.aio.Channel, *, target: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Self:
        """Make a client of an existing channel. Errors name the server `target`."""
        client = cls.__new__(cls)
        client._use(channel, target, None, timeout_s=timeout_s, wait_for_ready=False)  # noqa: SLF001  its own
        return client

    def _use(
        self,
        channel: grpc.aio.Channel,
        target: str,
        token: TokenSource | None,
        *,
        timeout_s: float,
        wait_for_ready: bool,
    ) -> None:
        self.target = target
        self._timeout_s = messages.checked_seconds(timeout_s, "timeout_s")
        self._wait_for_ready = wait_for_ready
        self._token = token
        self._known_sizes: KnownSizes = {}
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._channel = channel
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
        priority: PriorityName = "normal",
        **options: Unpack[DecodingOptions],
    ) -> list[Translation]:
        """Translate every text; see `dragoman.Client.translate`."""
        batches = translate_batches(
            texts,
            target_prefixes,
            model=model,
            version=version,
            options=options,
            timeout_s=self._deadline(timeout_s),
            known=self._known_sizes,
            priority=priority,
        )
        return await self._in_batches(self._translation.Translate, batches, answers.translations_from)

    def stream_translate(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        target_prefixes: str | Sequence[str] = (),
        timeout_s: float | None = None,
        priority: PriorityName = "normal",
        **options: Unpack[DecodingOptions],
    ) -> AsyncTranslationStream:
        """Translate every text and give the answers piece by piece; see `dragoman.Client.stream_translate`."""
        batches = translate_batches(
            texts,
            target_prefixes,
            model=model,
            version=version,
            options=options,
            timeout_s=self._deadline(timeout_s),
            known=self._known_sizes,
            priority=priority,
        )

        def begin(
            request: translation_pb2.TranslateRequest, timeout_s: float
        ) -> "grpc.aio.UnaryStreamCall[translation_pb2.TranslateRequest, translation_pb2.StreamTranslateResponse]":
            return self._stream(self._translation.StreamTranslate, request, timeout_s)

        return AsyncTranslationStream(begin, batches, self.target)

    async def score_translations(
        self,
        sources: str | Sequence[str],
        targets: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        num_alternatives: int = 0,
        timeout_s: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[TextScore]:
        """Return how probable given translations are; see `dragoman.Client.score_translations`."""
        batches = score_translation_batches(
            sources,
            targets,
            model=model,
            version=version,
            num_alternatives=num_alternatives,
            timeout_s=self._deadline(timeout_s),
            known=self._known_sizes,
            priority=priority,
        )
        return await self._in_batches(self._translation.ScoreTranslations, batches, answers.scores_from)

    def generate(
        self,
        prompt: str,
        *,
        model: str,
        version: str = "",
        timeout_s: float | None = None,
        priority: PriorityName = "normal",
        **options: Unpack[DecodingOptions],
    ) -> AsyncGeneration:
        """Continue a prompt: an asynchronous iterator of text pieces; see `dragoman.Client.generate`."""
        request = messages.generate_request(
            prompt, model=model, version=version, options=options, priority=priority
        )
        timeout_s = self._deadline(timeout_s)
        call = self._stream(self._generation.Generate, request, timeout_s)
        return AsyncGeneration(call, self.target, timeout_s)

    async def score_texts(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        num_alternatives: int = 0,
        timeout_s: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[TextScore]:
        """Return how probable given texts are to a generation model; see `dragoman.Client.score_texts`."""
        batches = score_text_batches(
            texts,
            model=model,
            version=version,
            num_alternatives=num_alternatives,
            timeout_s=self._deadline(timeout_s),
            known=self._known_sizes,
            priority=priority,
        )
        return await self._in_batches(self._generation.ScoreTexts, batches, answers.scores_from)

    async def models(self, *, timeout_s: float | None = None) -> ModelList:
        """Return the server's models, sorted by name, then by version; `not_loaded` holds those it could not load."""
        response = await self._unary(self._models.ListModels, model_pb2.ListModelsRequest(), timeout_s)
        return answers.models_from(response)

    async def model(self, name: str, version: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """Return one model, in the version that a call without a version gets when `version` is left out.

        Raises:
            NotFoundError: the server does not hold it.
        """
        request = messages.get_model_request(name, version)
        return answers.model_from(await self._unary(self._models.GetModel, request, timeout_s))

    async def load_model(self, model: str, version: str = "", *, timeout_s: float | None = None) -> None:
        """Have the server serve a version; without one, the highest in its models folder. Returns when it takes calls.

        Raises:
            NotFoundError: the server's models folder has no such version.
            InvalidRequestError: it cannot be served; what was served before is served on.
            ServerError: the server does not allow changes.
        """
        request = messages.load_model_request(model, version)
        await self._unary(self._models.LoadModel, request, timeout_s)

    async def unload_model(self, model: str, version: str = "", *, timeout_s: float | None = None) -> None:
        """Have the server unload a version, or all versions, once the calls that they answer have ended.

        Raises:
            NotFoundError: the server does not serve it.
            InvalidRequestError: an alias names it.
            ServerError: the server does not allow changes.
        """
        request = messages.unload_model_request(model, version)
        await self._unary(self._models.UnloadModel, request, timeout_s)

    async def set_alias(
        self,
        model: str,
        alias: str,
        version: str,
        *,
        traffic_percent: float = 0.0,
        timeout_s: float | None = None,
    ) -> None:
        """Let an alias name a version, and give it a share of the calls without a version.

        Raises:
            NotFoundError: the server does not serve the version.
            InvalidRequestError: the alias cannot be a name, or the shares are more than 100 percent.
            ServerError: the server does not allow changes.
        """
        request = messages.set_alias_request(model, alias, version, traffic_percent)
        await self._unary(self._models.SetAlias, request, timeout_s)

    async def delete_alias(self, model: str, alias: str, *, timeout_s: float | None = None) -> None:
        """Let an alias name nothing any more.

        Raises:
            NotFoundError: there is no such alias.
            ServerError: the server does not allow changes.
        """
        request = messages.delete_alias_request(model, alias)
        await self._unary(self._models.DeleteAlias, request, timeout_s)

    async def wait_until_serving(self, *, timeout_s: float | None = None, service: str = "") -> None:
        """Wait until the server's health service says SERVING (`grpc.health.v1`).

        Raises:
            DeadlineExceededError: it did not within `timeout_s`.
        """
        timeout_s = self._deadline(timeout_s)
        self._check_open()
        end_s = time.monotonic() + timeout_s
        with call_errors(self.target, timeout_s):
            # The event that would end this wait is in another process.
            while not await self._saw_serving(service, end_s - time.monotonic()):  # noqa: ASYNC110
                await asyncio.sleep(WATCH_PAUSE_S)

    async def close(self) -> None:
        """Close the connections; calls that still run are cancelled."""
        self._is_closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _in_batches(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Message],
        batches: Batches[_Request],
        read: Callable[[_Message], list[_Answer]],
    ) -> list[_Answer]:
        """Send all requests one after another; return what `read` makes of their answers."""
        results: list[_Answer] = []
        for request in batches:
            try:
                with call_errors(self.target, batches.timeout_s):
                    response = await self._call(method, request, batches.time_left_s)
            except InvalidRequestError as error:
                batches.refuse(error)
            else:
                batches.accept()
                results += read(response)
        return results

    async def _unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Message],
        request: _Request,
        timeout_s: float | None,
    ) -> _Message:
        timeout_s = self._deadline(timeout_s)
        with call_errors(self.target, timeout_s):
            return await self._call(method, request, timeout_s)

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Message],
        request: _Request,
        timeout_s: float,
    ) -> _Message:
        self._check_open()
        return await method(
            request, timeout=timeout_s, wait_for_ready=self._wait_for_ready, metadata=self._metadata()
        )

    def _stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[_Request, _Message],
        request: _Request,
        timeout_s: float,
    ) -> grpc.aio.UnaryStreamCall[_Request, _Message]:
        self._check_open()
        return method(
            request, timeout=timeout_s, wait_for_ready=self._wait_for_ready, metadata=self._metadata()
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"the client of {self.target} is closed; make a new one")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                f"the client of {self.target} belongs to another event loop; make one in this loop"
            )

    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        """Returns the metadata of a call."""
        credentials = () if self._token is None else self._token.metadata()
        return (*credentials, *trace_metadata()) or None

    def _deadline(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else messages.checked_seconds(timeout_s, "timeout_s")

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


def _check_loop_runs() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            "an AsyncClient is made inside a running event loop; elsewhere use Client"
        ) from error
