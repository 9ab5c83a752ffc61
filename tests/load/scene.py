"""A server at an address of its own, whose processes may be killed."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
import grpc.aio
from tests.integration.serving import http_get
from tests.load.steady_callers import ANSWERS, channel_to, translation_stub
from tests.load.tree import Tree

from dragoman.v1 import translation_pb2

__all__ = ["Scene", "free_port"]

START_S = 60.0
STOP_S = 60.0
PROBE_S = 1.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Scene:
    """A server that may be started anew on the same port.

    Attributes:
        address: of the host that it runs on.
        enter: a command that runs another one on that host.
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
        self.address = "127.0.0.1"
        self.enter: Sequence[str] = ()
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
            *self.enter,
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
            return http_get(self.metrics_port, "/readyz", self.address)[0] == 200
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
        return f"{self.address}:{self.port}"

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
        async with channel_to(self.target, self.credentials) as channel:
            request = translation_pb2.TranslateRequest(model="spell", inputs=["12"])
            try:
                answer = await translation_stub(channel).Translate(request, timeout=PROBE_S)
            except grpc.aio.AioRpcError:
                return False
        return answer.translations[0].text == ANSWERS["12"]
