"""A call through a front before any caller waits for one, so that none pays for what is made at a first call.

From the bytes of a request to those of the answer it takes the way of every call: message, rules, tokenizer, queue,
tickets, text, message. Only the lane is played: it answers with what the bundle's golden example has, at once. Lanes
take their first steps by themselves (`engine/warm_up.py`). Nothing is counted.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from google.protobuf.message import Message

from dragoman.server.bundle.manifest import GoldenExample
from dragoman.server.bundle.tasks import Task
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.hypothesis import FinishReason, Hypothesis
from dragoman.server.engine.api import Command, Event, Finished, LaneLoad, Report, Started, Submit, Tokens
from dragoman.server.engine.client import EngineClient
from dragoman.server.fronts.grpc.dragoman_v1.generation import GenerationServicer
from dragoman.server.fronts.grpc.dragoman_v1.translation import TranslationServicer
from dragoman.server.lifecycle import Lifecycle, Phase
from dragoman.server.models.registry import Registry
from dragoman.server.models.served_model import ServedModel
from dragoman.server.operations.metrics import ModelMetrics
from dragoman.server.requests.runtime import Runtime
from dragoman.v1 import generation_pb2, translation_pb2

__all__ = ["rehearse"]

LIMIT_S = 5.0
"""A call takes milliseconds. It is of no matter to callers whether this one ends."""

_log = structlog.get_logger(__name__)


async def rehearse(model: ServedModel, max_inputs: int, max_message_bytes: int | None) -> None:
    """Answer a golden example of `model` as the front with these limits answers calls. A failure is logged."""
    for example in model.manifest.golden_examples[:1]:
        engine = EngineClient(model.engine.facts, EngineSettings())
        engine.add_lane(0, _PlayedLane(engine, example))
        played = replace(model, engine=engine, metrics=_Uncounted())
        lifecycle = Lifecycle()
        lifecycle.phase = Phase.SERVING
        runtime = Runtime(
            Registry([played]), lifecycle, max_inputs=max_inputs, max_message_bytes=max_message_bytes
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                await _CALLS[model.manifest.task](runtime, model, example.text)
        except Exception:  # noqa: BLE001  callers get the same, each with a status of its own
            _log.exception("rehearsal_failed", model=model.name, version=model.version)
        finally:
            engine.close()


async def _translate(runtime: Runtime, model: ServedModel, text: str) -> None:
    request = translation_pb2.TranslateRequest(model=model.name, version=model.version, inputs=[text])
    received = translation_pb2.TranslateRequest.FromString(request.SerializeToString())
    context: Any = _Context()
    await context.write(await TranslationServicer(runtime).Translate(received, context))


async def _generate(runtime: Runtime, model: ServedModel, text: str) -> None:
    request = generation_pb2.GenerateRequest(model=model.name, version=model.version, prompt=text)
    received = generation_pb2.GenerateRequest.FromString(request.SerializeToString())
    context: Any = _Context()
    await GenerationServicer(runtime).Generate(received, context)


_CALLS: Mapping[Task, Callable[[Runtime, ServedModel, str], Awaitable[None]]] = {
    "translation": _translate,
    "generation": _generate,
}


class _Context:
    """What a servicer asks of a call's context."""

    def time_remaining(self) -> float:
        """Seconds until the deadline."""
        return LIMIT_S

    async def write(self, message: Message) -> None:
        """Make bytes of a message."""
        message.SerializeToString()


@dataclass(frozen=True, slots=True)
class _PlayedLane:
    """Answers each sequence with the golden example: a `LaneLink`."""

    engine: EngineClient
    example: GoldenExample

    def send(self, command: Command) -> None:
        """As `LaneLink.send`; the report comes in a later turn of the event loop, as from a lane."""
        if isinstance(command, Submit):
            events = [event for request in command.requests for event in self._events(request.id)]
            report = Report(events, [], LaneLoad(0, 0))
            asyncio.get_running_loop().call_soon(self.engine.receive, 0, report)

    def _events(self, number: int) -> list[Event]:
        now_s, token_ids = time.monotonic(), self.example.token_ids
        hypothesis = Hypothesis(
            token_ids, FinishReason.END_OF_SEQUENCE, self.example.log_probability, len(token_ids) + 1, 0.0
        )
        started = Started(number, now_s, now_s, 1)
        return [started, Tokens(number, list(token_ids)), Finished(number, (hypothesis,))]


class _Uncounted(ModelMetrics):
    """Counts nothing."""

    def __init__(self) -> None:
        """Without series."""

    def observe_accepted(self, *_: Any, **__: Any) -> None:
        """Does nothing."""

    def observe_preparation(self, *_: Any, **__: Any) -> None:
        """Does nothing."""

    def observe_times(self, *_: Any, **__: Any) -> None:
        """Does nothing."""

    def observe_answer(self, *_: Any, **__: Any) -> None:
        """Does nothing."""

    def observe_late(self, *_: Any, **__: Any) -> None:
        """Does nothing."""
