"""A front process that has lanes of its own, as threads: what fronts do is tried without the engine's host."""

import asyncio
import socket

from tests.integration.serving import BUNDLES

from dragoman.server.config import EngineSettings
from dragoman.server.fronts.processes.process import run_front
from dragoman.server.models.registry import Registry
from dragoman.server.models.threaded import ThreadedModels
from dragoman.server.operations.metrics import Metrics


class OwnModels:
    def __init__(self, settings: EngineSettings, metrics: Metrics) -> None:
        self.loaded = asyncio.Event()
        self._models = ThreadedModels(settings)
        self._models.load_all(BUNDLES)
        self._metrics = metrics
        self._engine: socket.socket | None = None

    def connect(self, sock: socket.socket) -> None:
        self._engine = sock
        self.loaded.set()

    def registry(self, *, is_first: bool) -> Registry:
        return self._models.registry(self._metrics)

    def close(self) -> None:
        self._models.close(1.0)


def main() -> None:
    run_front(OwnModels)
