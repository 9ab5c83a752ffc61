"""A real gRPC server that speaks `dragoman.v1` without a model, and fails in the way a test asks for.

Its "translation" of a text is the text in capitals; its "generation" is the prompt's words, one a message.
Every character is a token of half a nat, and each further hypothesis has one more exclamation mark.
"""
# ruff: noqa: N802  # gRPC names the methods

import collections
import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from dragoman.v1 import (
    decoding_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    translation_pb2,
    translation_pb2_grpc,
)


@dataclass
class Failure:
    """How one call ends instead of being answered."""

    code: grpc.StatusCode
    message: str = "scripted"
    details: tuple[Any, ...] = ()
    trailers: tuple[tuple[str, str], ...] = ()

    def abort(self, context: grpc.ServicerContext) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        rich = rpc_status.to_status(status).trailing_metadata
        context.set_trailing_metadata((*rich, *self.trailers))
        context.abort(self.code, self.message)


def invalid(field_name: str, description: str) -> Failure:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field_name, description=description)
    return Failure(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{field_name}: {description}",
        (error_details_pb2.BadRequest(field_violations=[violation]),),
    )


def overloaded(retry_delay_s: float, *, trailers: tuple[tuple[str, str], ...] = ()) -> Failure:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(int(retry_delay_s * 1000))
    return Failure(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the queue is full",
        (error_details_pb2.RetryInfo(retry_delay=delay),),
        trailers,
    )


@dataclass
class Script:
    """What the server is to do, and what it has seen."""

    failures: collections.deque[Failure] = field(default_factory=collections.deque)
    """One for each of the next calls."""
    refuse: Callable[[Any], Failure | None] = lambda request: None
    """Judges every request."""
    fail_after: Failure | None = None
    """How a stream of translations ends after its first message."""
    hold: threading.Event = field(default_factory=threading.Event)
    """Calls wait for it before they answer; set unless a test clears it."""
    requests: list[Any] = field(default_factory=list)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once a call."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when a call ends before its answer was sent."""

    def begin(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.arrived.release()
        failure = self.failures.popleft() if self.failures else self.refuse(request)
        if failure:
            failure.abort(context)
        context.add_callback(self._release_cancelled)
        self.hold.wait(timeout=30)

    def _release_cancelled(self) -> None:
        if not self.hold.is_set():
            self.cancelled.set()


def _usage(text: str) -> decoding_pb2.TokenUsage:
    return decoding_pb2.TokenUsage(input_tokens=len(text) + 1, output_tokens=len(text) + 1)


def _translation(
    text: str, options: decoding_pb2.DecodingOptions, prefix: str = ""
) -> translation_pb2.Translation:
    return translation_pb2.Translation(
        text=prefix + text.upper(),
        finish_reason=decoding_pb2.FINISH_REASON_END_OF_SEQUENCE,
        usage=_usage(text),
        log_probability=-0.25,
        score=-0.125,
        tokens=_told_tokens(text.upper(), options),
        hypotheses=_hypotheses(prefix + text.upper(), options),
        source_tokens=text if options.alignment else "",
    )


def _hypotheses(text: str, options: decoding_pb2.DecodingOptions) -> list[decoding_pb2.Hypothesis]:
    if options.num_hypotheses <= 1:
        return []
    return [
        decoding_pb2.Hypothesis(
            text=text + "!" * rank,
            finish_reason=decoding_pb2.FINISH_REASON_END_OF_SEQUENCE,
            output_tokens=len(text) + rank + 1,
            log_probability=-0.25 - rank,
            score=-0.125 - rank,
            tokens=_told_tokens(text + "!" * rank, options),
        )
        for rank in range(options.num_hypotheses)
    ]


def _told_tokens(text: str, options: decoding_pb2.DecodingOptions) -> list[decoding_pb2.OutputToken]:
    if not options.HasField("num_alternatives") and not options.alignment:
        return []
    return _tokens(text, options.num_alternatives, align=options.alignment)


def _tokens(text: str, num_alternatives: int, *, align: bool = False) -> list[decoding_pb2.OutputToken]:
    return [
        decoding_pb2.OutputToken(
            id=ord(character),
            token=character,
            log_probability=-0.5,
            alternatives=[
                decoding_pb2.TokenAlternative(
                    id=ord(character) + rank, token=chr(ord(character) + rank), log_probability=-0.5 - rank
                )
                for rank in range(num_alternatives)
            ],
            source_index=place if align else None,
        )
        for place, character in enumerate(text)
    ]


def _score(text: str, num_alternatives: int) -> decoding_pb2.TextScore:
    return decoding_pb2.TextScore(
        log_probability=-0.5 * len(text),
        perplexity=math.exp(0.5),
        tokens=_tokens(text, num_alternatives),
    )


class _Translations(translation_pb2_grpc.TranslationServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def Translate(self, request: Any, context: Any) -> translation_pb2.TranslateResponse:
        self._script.begin(request, context)
        prefixes = request.target_prefixes or [""] * len(request.inputs)
        return translation_pb2.TranslateResponse(
            version="3",
            translations=[
                _translation(text, request.options, prefix)
                for text, prefix in zip(request.inputs, prefixes, strict=True)
            ],
        )

    def StreamTranslate(
        self, request: Any, context: Any
    ) -> Iterator[translation_pb2.StreamTranslateResponse]:
        self._script.begin(request, context)
        for place in range(max(map(len, request.inputs))):
            for index, text in enumerate(request.inputs):
                if place < len(text):
                    is_last = place == len(text) - 1
                    yield translation_pb2.StreamTranslateResponse(
                        index=index,
                        text_delta=text[place].upper(),
                        translation=_translation(text, request.options) if is_last else None,
                        version="3" if is_last else "",
                    )
                    if self._script.fail_after:
                        self._script.fail_after.abort(context)

    def ScoreTranslations(self, request: Any, context: Any) -> translation_pb2.ScoreTranslationsResponse:
        self._script.begin(request, context)
        return translation_pb2.ScoreTranslationsResponse(
            version="3", scores=[_score(pair.target, request.num_alternatives) for pair in request.pairs]
        )


class _Generations(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def Generate(self, request: Any, context: Any) -> Iterator[generation_pb2.GenerateResponse]:
        self._script.begin(request, context)
        pieces = [f"{word}é " for word in request.prompt.split()]
        for piece in pieces:
            yield generation_pb2.GenerateResponse(text_delta=piece)
        yield generation_pb2.GenerateResponse(
            summary=generation_pb2.GenerationSummary(
                version="1",
                finish_reason=decoding_pb2.FINISH_REASON_LENGTH,
                usage=_usage(request.prompt),
                log_probability=-1.5,
                score=-0.5,
                tokens=_told_tokens("".join(pieces), request.options),
                hypotheses=_hypotheses("".join(pieces), request.options),
            )
        )

    def ScoreTexts(self, request: Any, context: Any) -> generation_pb2.ScoreTextsResponse:
        self._script.begin(request, context)
        return generation_pb2.ScoreTextsResponse(
            version="1", scores=[_score(text, request.num_alternatives) for text in request.texts]
        )


def _model(name: str, version: str, task: model_pb2.Task.ValueType) -> model_pb2.Model:
    model = model_pb2.Model(
        name=name,
        version=version,
        task=task,
        precision="fp32",
        provider="cpu",
        num_parameters=1_234_567,
        max_input_tokens=64,
        max_output_tokens=32,
        quality=[
            model_pb2.Quality(metric="exact_match", value=99.7, num_examples=1000, data="dates, test split")
        ],
    )
    model.provenance.update({"recipe": name, "step": 500})
    return model


MODELS = (
    _model("dates", "1", model_pb2.TASK_TRANSLATION),
    _model("dates", "3", model_pb2.TASK_TRANSLATION),
    _model("stdlib", "1", model_pb2.TASK_GENERATION),
)


class _Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:
        self._script.begin(request, context)
        return model_pb2.ListModelsResponse(models=MODELS)

    def GetModel(self, request: Any, context: Any) -> model_pb2.Model:
        self._script.begin(request, context)
        held = [m for m in MODELS if m.name == request.model and request.version in ("", m.version)]
        if not held:
            Failure(grpc.StatusCode.NOT_FOUND, f"no model {request.model!r}; this server has: dates/3").abort(
                context
            )
        return held[-1]

    def LoadModel(self, request: Any, context: Any) -> model_pb2.LoadModelResponse:
        self._script.begin(request, context)
        return model_pb2.LoadModelResponse()

    def UnloadModel(self, request: Any, context: Any) -> model_pb2.UnloadModelResponse:
        self._script.begin(request, context)
        return model_pb2.UnloadModelResponse()

    def SetAlias(self, request: Any, context: Any) -> model_pb2.SetAliasResponse:
        self._script.begin(request, context)
        return model_pb2.SetAliasResponse()

    def DeleteAlias(self, request: Any, context: Any) -> model_pb2.DeleteAliasResponse:
        self._script.begin(request, context)
        return model_pb2.DeleteAliasResponse()


@dataclass
class ScriptedServer:
    """A running server."""

    port: int
    script: Script
    health: health.HealthServicer

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self.health.set("", status.SERVING if serving else status.NOT_SERVING)


@contextlib.contextmanager
def running_server(port: int = 0) -> Iterator[ScriptedServer]:
    """Serve on a free port of the loopback until the block ends."""
    script = Script()
    script.hold.set()
    grpc_server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 0)])
    translation_pb2_grpc.add_TranslationServiceServicer_to_server(_Translations(script), grpc_server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(_Generations(script), grpc_server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(_Models(script), grpc_server)
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, grpc_server)
    bound = grpc_server.add_insecure_port(f"127.0.0.1:{port}")
    grpc_server.start()
    try:
        yield ScriptedServer(bound, script, servicer)
    finally:
        script.hold.set()
        grpc_server.stop(grace=None).wait()
