"""The blocking client. Safe to share between threads: one connection per server address serves them all."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2

from dragoman.client import answers, messages
from dragoman.client.batching import (
    Batches,
    KnownSizes,
    score_text_batches,
    score_translation_batches,
    translate_batches,
)
from dragoman.client.blocking_streams import Generation, StreamingCall, TranslationStream
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

__all__ = ["Client"]

_Request = TypeVar("_Request")
_Message = TypeVar("_Message")
_Answer = TypeVar("_Answer")


class Client:
    """Calls the models of a Dragoman server.

        with Client("localhost:8500") as client:
            [answer] = client.translate("le 3 mars 2024", model="dates")
            print(answer.text)

    Every call has a deadline. A call that fails is repeated where that is safe (see `ChannelSettings`). Calls are
    spread over all addresses that the target's name resolves to.

    Args:
        target: `host:port`, or a gRPC name such as `dns:///host:port` or `unix:/path`.
        timeout_s: Deadline of a call that names none, in seconds.
        wait_for_ready: Wait (within the deadline) for a server that is not there yet, instead of failing.
        settings: Retries, keepalive and the like.
        credentials: TLS and a token. Left out: what the environment names (`DRAGOMAN_TLS_CA`, `DRAGOMAN_TOKEN_FILE`
            and so on), else plain text. gRPC's own credentials are taken too.

    Raises:
        UsageError: the target is not of the form `host:port`, or credentials cannot be used.
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
        name = resolve_target(messages.checked_text(target, "target"))
        arguments = (settings or ChannelSettings()).arguments(name)
        protection = Protection.of(credentials, name)
        arguments += protection.arguments
        channel = (
            grpc.secure_channel(name, protection.channel, arguments)
            if protection.channel
            else grpc.insecure_channel(name, arguments)
        )
        self._use(channel, target, protection.token, timeout_s=timeout_s, wait_for_ready=wait_for_ready)

    @classmethod
    def over(cls, channel: grpc.Channel, *, target: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Self:
        """Make a client of an existing channel. Errors name the server `target`."""
        client = cls.__new__(cls)
        client._use(channel, target, None, timeout_s=timeout_s, wait_for_ready=False)  # noqa: SLF001  its own
        return client

    def _use(
        self,
        channel: grpc.Channel,
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
        self._channel = channel
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
        target_prefixes: str | Sequence[str] = (),
        timeout_s: float | None = None,
        priority: PriorityName = "normal",
        **options: Unpack[DecodingOptions],
    ) -> list[Translation]:
        """Translate every text; the answers come in the order of the texts.

        Args:
            texts: One text or several, each translated on its own. More than a server takes in a call (128 by
                default) are sent in several calls, one after another.
            model: A model's name, as `models` gives it.
            version: Its version; the highest one when left out.
            target_prefixes: What the translations begin with, one for each text; "" forces nothing.
            timeout_s: Deadline of all calls together, in seconds.
            priority: How soon the calls get their turn while calls wait: "high", "normal" or "low".
            **options: See `DecodingOptions`.

        Raises:
            CallError: one of its kinds; see `dragoman.client.errors`.
            UsageError: an argument that no message can hold.
            TypeError: an argument of the wrong type.
            ValueError: the client is closed.
        """
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
        return self._in_batches(self._translation.Translate, batches, answers.translations_from)

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
    ) -> TranslationStream:
        """Translate every text and give the answers piece by piece; arguments as for `translate`.

        The call ends at once when the stream is closed or dropped.
        """
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
        ) -> "StreamingCall[translation_pb2.StreamTranslateResponse]":
            self._check_open()
            return self._translation.StreamTranslate(
                request, timeout=timeout_s, wait_for_ready=self._wait_for_ready, metadata=self._metadata()
            )

        return TranslationStream(begin, batches, self.target)

    def score_translations(
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
        """Return how probable given translations are; the scores come in the order of the pairs.

        Args:
            sources: One text or several.
            targets: What each of them is translated to, as many.
            model: A translation model's name, as `models` gives it.
            version: Its version; the highest one when left out.
            num_alternatives: Number of the most probable tokens to return at each place.
            timeout_s: Deadline of this call, in seconds.
            priority: How soon the call gets its turn while calls wait: "high", "normal" or "low".

        Raises:
            CallError: one of its kinds; see `dragoman.client.errors`.
            UsageError: an argument that no message can hold.
        """
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
        return self._in_batches(self._translation.ScoreTranslations, batches, answers.scores_from)

    def generate(
        self,
        prompt: str,
        *,
        model: str,
        version: str = "",
        timeout_s: float | None = None,
        priority: PriorityName = "normal",
        **options: Unpack[DecodingOptions],
    ) -> Generation:
        """Continue a prompt: an iterator of text pieces, which has a `summary` once it is exhausted.

        The call ends at once when the stream is closed or dropped. Arguments and errors as for
        `translate`; errors come while iterating.
        """
        request = messages.generate_request(
            prompt, model=model, version=version, options=options, priority=priority
        )
        timeout_s = self._deadline(timeout_s)
        self._check_open()
        call = self._generation.Generate(
            request, timeout=timeout_s, wait_for_ready=self._wait_for_ready, metadata=self._metadata()
        )
        return Generation(call, self.target, timeout_s)

    def score_texts(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        version: str = "",
        num_alternatives: int = 0,
        timeout_s: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[TextScore]:
        """Return how probable given texts are to a generation model, in the order of the texts.

        Arguments and errors as for `score_translations`.
        """
        batches = score_text_batches(
            texts,
            model=model,
            version=version,
            num_alternatives=num_alternatives,
            timeout_s=self._deadline(timeout_s),
            known=self._known_sizes,
            priority=priority,
        )
        return self._in_batches(self._generation.ScoreTexts, batches, answers.scores_from)

    def models(self, *, timeout_s: float | None = None) -> ModelList:
        """Return the server's models, sorted by name, then by version; `not_loaded` holds those it could not load."""
        response = self._unary(self._models.ListModels, model_pb2.ListModelsRequest(), timeout_s)
        return answers.models_from(response)

    def model(self, name: str, version: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """Return one model, in the version that a call without a version gets when `version` is left out.

        Raises:
            NotFoundError: the server does not hold it.
        """
        request = messages.get_model_request(name, version)
        return answers.model_from(self._unary(self._models.GetModel, request, timeout_s))

    def load_model(self, model: str, version: str = "", *, timeout_s: float | None = None) -> None:
        """Have the server serve a version; without one, the highest in its models folder. Returns when it takes calls.

        Raises:
            NotFoundError: the server's models folder has no such version.
            InvalidRequestError: it cannot be served; what was served before is served on.
            ServerError: the server does not allow changes.
        """
        request = messages.load_model_request(model, version)
        self._unary(self._models.LoadModel, request, timeout_s)

    def unload_model(self, model: str, version: str = "", *, timeout_s: float | None = None) -> None:
        """Have the server unload a version, or all versions, once the calls that they answer have ended.

        Raises:
            NotFoundError: the server does not serve it.
            InvalidRequestError: an alias names it.
            ServerError: the server does not allow changes.
        """
        request = messages.unload_model_request(model, version)
        self._unary(self._models.UnloadModel, request, timeout_s)

    def set_alias(
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
        self._unary(self._models.SetAlias, request, timeout_s)

    def delete_alias(self, model: str, alias: str, *, timeout_s: float | None = None) -> None:
        """Let an alias name nothing any more.

        Raises:
            NotFoundError: there is no such alias.
            ServerError: the server does not allow changes.
        """
        request = messages.delete_alias_request(model, alias)
        self._unary(self._models.DeleteAlias, request, timeout_s)

    def wait_until_serving(self, *, timeout_s: float | None = None, service: str = "") -> None:
        """Wait until the server's health service says SERVING (`grpc.health.v1`).

        Raises:
            DeadlineExceededError: it did not within `timeout_s`.
        """
        timeout_s = self._deadline(timeout_s)
        self._check_open()
        end_s = time.monotonic() + timeout_s
        with call_errors(self.target, timeout_s):
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
        self._is_closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in_batches(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Message]",
        batches: Batches[_Request],
        read: Callable[[_Message], list[_Answer]],
    ) -> list[_Answer]:
        """Send all requests one after another; return what `read` makes of their answers."""
        results: list[_Answer] = []
        for request in batches:
            try:
                with call_errors(self.target, batches.timeout_s):
                    response = self._call(method, request, batches.time_left_s)
            except InvalidRequestError as error:
                batches.refuse(error)
            else:
                batches.accept()
                results += read(response)
        return results

    def _unary(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Message]",
        request: _Request,
        timeout_s: float | None,
    ) -> _Message:
        timeout_s = self._deadline(timeout_s)
        with call_errors(self.target, timeout_s):
            return self._call(method, request, timeout_s)

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Message]",
        request: _Request,
        timeout_s: float,
    ) -> _Message:
        self._check_open()
        return method(
            request, timeout=timeout_s, wait_for_ready=self._wait_for_ready, metadata=self._metadata()
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"the client of {self.target} is closed; make a new one")

    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        """Returns the metadata of a call."""
        credentials = () if self._token is None else self._token.metadata()
        return (*credentials, *trace_metadata()) or None

    def _deadline(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else messages.checked_seconds(timeout_s, "timeout_s")
