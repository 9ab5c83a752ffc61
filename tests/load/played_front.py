"""A server's front with all services and no sockets: calls come from a program that plays gRPC's side of them."""

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog
from benchmarks.played_context import PlayedContext
from tests.integration.serving import BUNDLES

from dragoman.server.config import ServerSettings
from dragoman.server.fronts.grpc.front import GrpcFront
from dragoman.server.lifecycle import Lifecycle, Phase
from dragoman.server.models.repository import Repository
from dragoman.server.models.threaded import ThreadedModels
from dragoman.server.operations.metrics import Metrics
from dragoman.server.security.credentials import Credentials

__all__ = ["Outcome", "PlayedFront"]

CALL_S = 20.0
"""A call that takes longer hangs: what is asked of these models takes milliseconds."""


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    code: str
    details: str
    sent: Sequence[Any]
    trailing: Mapping[str, str | bytes]


class _Services:
    """What a `grpc.aio.Server` is for a front; the handlers are kept by their paths."""

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Does nothing: generated code registers the same methods in this older way too."""

    def add_insecure_port(self, _: str) -> int:
        return 1

    async def start(self) -> None: ...


class _Front(GrpcFront):
    """A front that listens nowhere."""

    services: _Services

    def _make_server(self, num_streams: int) -> Any:
        self.services = _Services()
        return self.services


class _NoEngine:
    """Loads and unloads nothing, and keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: set[tuple[str, str]] = set()

    async def load_version(self, name: str, version: str) -> None:
        self.asked.add((name, version))

    async def unload_version(self, name: str, version: str) -> None:
        self.asked.add((name, version))


class PlayedFront:
    """Serves `spell` and `count` to callers that may ask for changes, of which none is made.

    Attributes:
        methods: paths, all of which have the chain of interceptors around them.
        asked: versions that callers wanted to have loaded or unloaded.
    """

    def __init__(self, security: Mapping[str, Any] | None = None) -> None:
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
        values = {
            "models": {"directory": str(BUNDLES), "allow_changes": True},
            "engine": {"lanes": 1, "threads_per_lane": 1},
            "security": security or {},
        }
        settings = ServerSettings.load(values, source="played front")
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        lifecycle = Lifecycle()
        lifecycle.phase = Phase.SERVING
        metrics = Metrics(1.0)
        models = self._models = ThreadedModels(settings.engine)
        for name in ("spell", "count"):
            models.load(BUNDLES / name / "2")
        self._front = _Front(settings, Credentials(settings.security), lifecycle, metrics, _crash)
        self._loop.run_until_complete(self._start(models, metrics))

    async def _start(self, models: ThreadedModels, metrics: Metrics) -> None:
        registry = models.registry(metrics)
        engine = _NoEngine()
        self.asked = engine.asked
        repository = Repository(BUNDLES, engine, serves_all=True)
        await repository.begin(registry)
        registry.show(repository.catalog)
        await self._front.start(registry, 0, repository)
        foreign = ("/grpc.health", "/grpc.reflection")
        paths = self._front.services.handlers
        self.methods = sorted(path for path in paths if not path.startswith(foreign))

    def close(self) -> None:
        """End the lanes and the event loop."""
        assert self._models.close(CALL_S), "a lane does not end"
        self._runner.close()

    def call(self, path: str, *messages: bytes, **of_context: Any) -> Outcome:
        """Call a method with the `messages` and return how that ended; further arguments are the context's."""
        return self._loop.run_until_complete(self._call(path, messages, of_context))

    async def _call(self, path: str, messages: Sequence[bytes], of_context: Mapping[str, Any]) -> Outcome:
        handler = self._front.services.handlers[path]
        behaviour: Callable[..., Any] = handler.stream_stream or handler.stream_unary  # type: ignore[assignment]
        context = PlayedContext(*messages, **of_context)
        try:
            async with asyncio.timeout(CALL_S):
                answer = await behaviour(None, context)
        finally:
            context.end()
        sent = context.sent if answer is None else [*context.sent, answer]
        trailing: dict[str, str | bytes] = dict(context.trailing)
        if context.status is None:
            return Outcome("OK", "", sent, trailing)
        trailing |= dict(context.status.trailing_metadata or ())
        return Outcome(context.status.code.name, context.status.details, sent, trailing)


def _crash(error: BaseException) -> None:
    raise error
