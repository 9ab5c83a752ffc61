"""The blocking client. Safe to share between threads: one connection per server address serves them all."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, Unpack

import grpc
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

__all__ = ["Client", "Generation", "TranslationStream"]

_Message = TypeVar("_Message")
_Message_co = TypeVar("_Message_co", covariant=True)


class _Call(Protocol[_Message_co]):
    def __next__(self) -> _Message_co: ...
    def cancel(self) -> bool: ...


class Client:
    """Calls the models of a Dragoman server.

        with Client("localhost:8500") as client:
            [answer] = client.translate("le 3 mars 2024", model="dates")
            print(answer.text)

    Every call has a deadline, is tried again where that is safe (see `ChannelSettings`) and is spread
    over all addresses that the target's name resolves to.

    Args:
        target: `host:port`, or a gRPC name such as `dns:///host:port` or `unix:/path`.
        timeout_s: Deadline of a call that names none, in seconds.
        wait_for_ready: Wait (within the deadline) for a server that is not there yet, instead of failing.
        settings: Retries, keepalive and the like.
        credentials: TLS credentials; plain text when left out.

    Raises:
        UsageError: the target is not of the form `host:port`.
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
            grpc.secure_channel(name, credentials, arguments)
            if credentials
            else grpc.insecure_channel(name, arguments)
        )
        self._translation = translation_pb2_grpc.TranslationServiceStub(self._channel)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._watch = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    def translate(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> list[Translation]:
        """Translate every text; the answers come in the order of the texts.

        Args:
            texts: One text or several, each translated on its own.
            model: A model's name, as `models` gives it.
            version: Its version; the highest there is when left out.
            timeout_s: Deadline of this call, in seconds.
            **options: See `DecodingOptions`.

        Raises:
            CallError: one of its kinds; see `client.errors`.
            UsageError: an argument that no message can hold.
        """
        request = messages.translate_request(texts, model=model, version=version, options=options)
        timeout_s = self._deadline(timeout_s)
        with _call_errors(self.target, timeout_s):
            response = self._translation.Translate(
                request, timeout=timeout_s, wait_for_ready=self._wait_for_ready
            )
        return messages.translations_from(response)

    def stream_translate(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> "TranslationStream":
        """Translate every text and give the answers piece by piece; arguments as for `translate`.

        The call ends at once when the stream is closed or dropped.
        """
        request = messages.translate_request(texts, model=model, version=version, options=options)
        timeout_s = self._deadline(timeout_s)
        call = self._translation.StreamTranslate(
            request, timeout=timeout_s, wait_for_ready=self._wait_for_ready
        )
        return TranslationStream(call, self.target, timeout_s)

    def generate(
        self,
        prompt: str,
        *,
        model: str,
        version: str = "",
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> "Generation":
        """Continue a prompt: an iterator of text pieces, which has a `summary` once it is exhausted.

        The call ends at once when the stream is closed or dropped. Arguments and errors as for
        `translate`; errors come while iterating.
        """
        request = messages.generate_request(prompt, model=model, version=version, options=options)
        timeout_s = self._deadline(timeout_s)
        call = self._generation.Generate(request, timeout=timeout_s, wait_for_ready=self._wait_for_ready)
        return Generation(call, self.target, timeout_s)

    def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Every model the server holds, sorted by name, then by version."""
        timeout_s = self._deadline(timeout_s)
        with _call_errors(self.target, timeout_s):
            response = self._models.ListModels(
                model_pb2.ListModelsRequest(), timeout=timeout_s, wait_for_ready=self._wait_for_ready
            )
        return [messages.model_from(model) for model in response.models]

    def model(self, name: str, version: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """One model, in its highest version when `version` is left out.

        Raises:
            NotFoundError: the server does not hold it.
        """
        timeout_s = self._deadline(timeout_s)
        with _call_errors(self.target, timeout_s):
            response = self._models.GetModel(
                model_pb2.GetModelRequest(model=name, version=version),
                timeout=timeout_s,
                wait_for_ready=self._wait_for_ready,
            )
        return messages.model_from(response)

    def wait_until_serving(self, *, timeout_s: float | None = None, service: str = "") -> None:
        """Wait until the server's health service says SERVING (`grpc.health.v1`).

        Raises:
            DeadlineExceededError: it did not within `timeout_s`.
        """
        timeout_s = self._deadline(timeout_s)
        end_s = time.monotonic() + timeout_s
        with _call_errors(self.target, timeout_s):
            while not self._saw_serving(service, end_s - time.monotonic()):
                time.sleep(WATCH_PAUSE_S)

    def _saw_serving(self, service: str, timeout_s: float) -> bool:
        """Watch the health until it is SERVING; False when the server went away instead."""
        call = self._watch(
            health_pb2.HealthCheckRequest(service=service), timeout=max(0.0, timeout_s), wait_for_ready=True
        )
        try:
            return any(response.status == health_pb2.HealthCheckResponse.SERVING for response in call)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        finally:
            call.cancel()

    def close(self) -> None:
        """Close the connections; calls that still run are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s


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
        with _call_errors(self._target, self._timeout_s):
            return next(self._call)


class TranslationStream(_Stream[translation_pb2.StreamTranslateResponse]):
    """Pieces of translations as they are produced; those of several texts are interleaved."""

    def __iter__(self) -> Iterator[TranslationDelta]:
        return self

    def __next__(self) -> TranslationDelta:
        return messages.delta_from(self._next_message())


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
                self._summary = messages.summary_from(response.summary)
            if response.text_delta:
                return response.text_delta


@contextlib.contextmanager
def _call_errors(target: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise error_from_call(error, target=target, timeout_s=timeout_s) from error
