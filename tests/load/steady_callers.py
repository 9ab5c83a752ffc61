"""Callers that ask for translations again and again, know the right answers, and count what they get."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from dragoman.client import AsyncClient, CallError
from dragoman.v1 import translation_pb2, translation_pb2_grpc

__all__ = ["ANSWERS", "RETRYABLE", "SteadyCallers", "channel_to", "translation_stub"]

RETRYABLE = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"})
"""What our client repeats."""
ANSWERS: Mapping[str, str] = {"12": "one two", "7": "seven", "40": "four zero"}
"""Of the model `spell`."""
PATIENCE_S = 20.0
PAUSE_S = 0.02


def channel_to(
    target: str, credentials: grpc.ChannelCredentials | None, *options: tuple[str, int]
) -> grpc.aio.Channel:
    """A channel with connections of its own."""
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50), *options]
    if credentials is not None:
        return grpc.aio.secure_channel(target, credentials, own)
    return grpc.aio.insecure_channel(target, own)


def translation_stub(channel: grpc.aio.Channel) -> "translation_pb2_grpc.TranslationServiceAsyncStub":
    """The translation service at the other end of `channel`."""
    return translation_pb2_grpc.TranslationServiceStub(channel)


@dataclass
class SteadyCallers:
    """Callers that go on and on, and what they got.

    Attributes:
        answers: what each text has to be answered with.
        num_texts: of a call.
        retryable: statuses that may come when a part of the server dies.
        plain: of callers that repeat nothing: "right", "retryable", or what else.
        repeated: of callers with our client.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None
    model: str = "spell"
    answers: Mapping[str, str] = field(default_factory=lambda: ANSWERS)
    num_texts: int = 1
    retryable: frozenset[str] = RETRYABLE
    plain: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    is_over: bool = False

    def restart_counts(self) -> None:
        """Count from now on."""
        self.plain.clear()
        self.repeated.clear()

    @contextlib.asynccontextmanager
    async def calling(self, num_callers: int) -> AsyncIterator[None]:
        """Call meanwhile, so many of each kind."""
        kinds: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (self._ask, self._ask_with_client)
        tasks = [asyncio.create_task(call()) for call in kinds for _ in range(num_callers)]
        try:
            yield
        finally:
            self.is_over = True
            await asyncio.gather(*tasks)

    async def _ask(self) -> None:
        options = (("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 200))
        async with channel_to(self.target, self.credentials, *options) as channel:
            stub = translation_stub(channel)
            while not self.is_over:
                texts = self._texts()
                request = translation_pb2.TranslateRequest(model=self.model, inputs=texts)
                try:
                    answer = await stub.Translate(request, timeout=PATIENCE_S)
                except grpc.aio.AioRpcError as error:
                    name = error.code().name
                    self.plain["retryable" if name in self.retryable else f"{name}: {error.details()}"] += 1
                    await asyncio.sleep(PAUSE_S)
                else:
                    self.plain[self._judged(texts, [each.text for each in answer.translations])] += 1

    async def _ask_with_client(self) -> None:
        async with AsyncClient(self.target, credentials=self.credentials) as client:
            while not self.is_over:
                texts = self._texts()
                try:
                    answers = await client.translate(texts, model=self.model, timeout_s=PATIENCE_S)
                except CallError as error:
                    self.repeated[f"{type(error).__name__}: {error}"] += 1
                    await asyncio.sleep(PAUSE_S)
                else:
                    self.repeated[self._judged(texts, [each.text for each in answers])] += 1

    def _texts(self) -> list[str]:
        return random.choices(list(self.answers), k=self.num_texts)

    def _judged(self, texts: Sequence[str], answered: Sequence[str]) -> str:
        return "right" if answered == [self.answers[text] for text in texts] else f"wrong: {answered}"
