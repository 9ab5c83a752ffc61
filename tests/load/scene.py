"""A loaded server on a port of its own, whose processes may be killed: callers know the right answers."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from tests.integration.serving import http_get
from tests.load.tree import Tree

from dragoman.client import AsyncClient, CallError
from dragoman.v1 import translation_pb2, translation_pb2_grpc

__all__ = ["RETRYABLE", "Callers", "Scene", "free_port"]

RETRYABLE = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"}
"""What our client repeats."""
PATIENCE_S = 20.0
START_S = 60.0
STOP_S = 60.0
PAUSE_S = 0.02
PROBE_S = 1.0
ANSWERS = {"12": "one two", "7": "seven", "40": "four zero"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Scene:
    """A server that may be started anew on the same port.

    Attributes:
        log_to: a file in the place of a pipe that is read.
        environment: variables beside those of this process.
        before_close: called when the server has been killed.
    """

    def __init__(
        self,
        models: Path,
        overrides: Sequence[str] = (),
        *,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.models = models
        self.port, self.metrics_port = free_port(), free_port()
        self.credentials = credentials
        self.log_to: Path | None = None
        self.environment: Mapping[str, str] = {}
        self.before_close: Callable[[], None] = lambda: None
        self.tree: Tree
        self._overrides = overrides
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Start a server, with further settings, in the place of one that has ended; return when it serves."""
        if self._process is not None:
            self._process.wait()
        command = [
            sys.executable,
            "-m",
            "dragoman.server",
            "--models",
            str(self.models),
            "--log-format",
            "json",
        ]
        command += [
            "--port",
            str(self.port),
            "--metrics-port",
            str(self.metrics_port),
            "--log-level",
            "debug",
        ]
        for override in (*self._overrides, *more):
            command += ["--set", override]
        with (self.log_to or Path(os.devnull)).open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log, env={**os.environ, **self.environment})
        self.tree = Tree(self._process.pid)
        end_s = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the server does not serve; exit code {self._process.poll()}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            return http_get(self.metrics_port, "/readyz")[0] == 200
        except OSError:
            return False

    def stop(self) -> int:
        """Tell it to stop and wait until it has; returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_S)

    def close(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.before_close()

    @property
    def target(self) -> str:
        """What a client takes."""
        return f"127.0.0.1:{self.port}"

    async def ready_again(self, wanted: dict[str, int], since_s: float, limit_s: float) -> float | None:
        """Seconds until new connections get right answers, five in a row, and all processes are there; None: never."""
        num_right = 0
        while time.monotonic() < since_s + limit_s:
            num_right = num_right + 1 if await self._probe() else 0
            if num_right >= 5 and self.tree.counts() == wanted:
                return time.monotonic() - since_s
            await asyncio.sleep(0.01)
        return None

    async def _probe(self) -> bool:
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50)]
        async with _channel(self.target, self.credentials, own) as channel:
            stub: translation_pb2_grpc.TranslationServiceAsyncStub = (
                translation_pb2_grpc.TranslationServiceStub(channel)
            )
            request = translation_pb2.TranslateRequest(model="spell", inputs=["12"])
            try:
                answer = await stub.Translate(request, timeout=PROBE_S)
            except grpc.aio.AioRpcError:
                return False
        return answer.translations[0].text == ANSWERS["12"]


def _channel(
    target: str, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, int]]
) -> grpc.aio.Channel:
    if credentials is not None:
        return grpc.aio.secure_channel(target, credentials, options)
    return grpc.aio.insecure_channel(target, options)


@dataclass
class Callers:
    """Callers that go on and on, and what they got.

    Attributes:
        plain: of callers that repeat nothing: "right", "retryable", or what else.
        repeated: of callers with our client.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None
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
        tasks = [
            asyncio.create_task(call())
            for call in (self._ask, self._ask_with_client)
            for _ in range(num_callers)
        ]
        try:
            yield
        finally:
            self.is_over = True
            await asyncio.gather(*tasks)

    async def _ask(self) -> None:
        options = [
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        ]
        async with _channel(self.target, self.credentials, options) as channel:
            stub: translation_pb2_grpc.TranslationServiceAsyncStub = (
                translation_pb2_grpc.TranslationServiceStub(channel)
            )
            for text in self._texts():
                request = translation_pb2.TranslateRequest(model="spell", inputs=[text])
                try:
                    answer = await stub.Translate(request, timeout=PATIENCE_S)
                except grpc.aio.AioRpcError as error:
                    name = error.code().name
                    self.plain["retryable" if name in RETRYABLE else f"{name}: {error.details()}"] += 1
                    await asyncio.sleep(PAUSE_S)
                else:
                    told = answer.translations[0].text
                    self.plain["right" if told == ANSWERS[text] else f"wrong: {told}"] += 1

    async def _ask_with_client(self) -> None:
        async with AsyncClient(self.target, credentials=self.credentials) as client:
            for text in self._texts():
                try:
                    [answer] = await client.translate(text, model="spell", timeout_s=PATIENCE_S)
                except CallError as error:
                    self.repeated[f"{type(error).__name__}: {error}"] += 1
                    await asyncio.sleep(PAUSE_S)
                else:
                    self.repeated["right" if answer.text == ANSWERS[text] else f"wrong: {answer.text}"] += 1

    def _texts(self) -> Iterator[str]:
        while not self.is_over:
            yield from ANSWERS
