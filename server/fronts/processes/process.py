"""The life of a further front: what the module that a `FrontProcess` runs calls in its `main`.

It has no settings, models, port or log of its own: the server process sends and takes all of it. It ends when it was
told to drain and has, or at once with the server process.
"""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import NoReturn, Protocol

import msgspec
import structlog
from prometheus_client import disable_created_metrics

from dragoman.common.cpu import cpu_limit_cores
from dragoman.common.errors import DragomanError
from dragoman.server.config import EngineSettings, ServerSettings
from dragoman.server.fronts.grpc.front import GrpcFront
from dragoman.server.fronts.processes.changes import ForwardedChanges
from dragoman.server.fronts.processes.clients import OtherFronts
from dragoman.server.fronts.processes.messages import (
    Begin,
    CannotServe,
    ChangeMade,
    Drain,
    Listen,
    Reload,
    Serving,
    SetFailing,
    ShowCatalog,
    ShowStatistics,
    ToFront,
    UseEngine,
)
from dragoman.server.fronts.processes.statistics import AskedStatistics
from dragoman.server.lifecycle import Lifecycle, Phase
from dragoman.server.models.catalog import Catalog
from dragoman.server.models.registry import Registry
from dragoman.server.operations.crashes import leaving_on_dead_threads, loop_error_handler
from dragoman.server.operations.logs import forward_standard_logs, set_level
from dragoman.server.operations.metrics import Metrics
from dragoman.server.operations.reloading import CredentialReloader
from dragoman.server.operations.shared_values import ValueWriter, counting_in
from dragoman.server.operations.stop_signals import EXIT_BROKEN
from dragoman.server.operations.tracing import start_tracing
from dragoman.server.processes.channel import Channel
from dragoman.server.processes.linux import FRONT_ARENAS, limit_arenas
from dragoman.server.processes.logs import send_logs_to
from dragoman.server.processes.memory_files import read_memory_file
from dragoman.server.security.credentials import Credentials

__all__ = ["PUBLISH_INTERVAL_S", "Models", "run_front"]

PUBLISH_INTERVAL_S = 0.25
"""How often series are written that are read at a scrape: slots in use, queues, steps, arrivals."""

_log = structlog.get_logger(__name__)


class Models(Protocol):
    """The models of the engine, as a front has them. On one event loop.

    Attributes:
        loaded: set when all models and lanes are there.
    """

    loaded: asyncio.Event

    def connect(self, sock: socket.socket) -> None:
        """Hear the engine's host at the other end: the first one, or one that takes another's place."""

    def registry(self, *, is_first: bool) -> Registry:
        """The models by name, once they are loaded; the first front alone logs them."""

    def close(self) -> None:
        """Give up all lanes."""


MakeModels = Callable[[EngineSettings, Metrics], Models]


def run_front(make_models: MakeModels) -> NoReturn:
    """Answer calls until the server process says or ends. `make_models` is called on the event loop."""
    limit_arenas(FRONT_ARENAS)
    number, control, log, values, clients = map(int, sys.argv[2:7])
    channel: Channel[ToFront] = Channel(socket.socket(fileno=control), ToFront)
    log_socket = socket.socket(fileno=log)
    send_logs_to(log_socket)
    code = EXIT_BROKEN
    try:
        begin, _ = channel.wait()
        assert isinstance(begin, Begin)
        settings = ServerSettings.model_validate_json(begin.settings)
        send_logs_to(log_socket, getattr(logging, settings.logging.level.upper()))
        forward_standard_logs()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        disable_created_metrics()  # type: ignore[no-untyped-call]
        writer = ValueWriter(values)
        others = OtherFronts(clients, number, begin.num_fronts)
        with counting_in(writer), leaving_on_dead_threads(_leave):
            asyncio.run(_Front(settings, begin.num_fronts, channel, writer, others).run(make_models))
        code = 0
    except ConnectionError:  # the server process has ended
        code = 0
    except DragomanError as error:
        with contextlib.suppress(ConnectionError):
            channel.send(CannotServe(str(error)))
    except BaseException:  # noqa: BLE001  the log is all that is left
        _log.exception("broken")
    os._exit(code)  # native threads may still run: what they use must stay


class _Front:
    def __init__(
        self,
        settings: ServerSettings,
        num_fronts: int,
        channel: "Channel[ToFront]",
        writer: ValueWriter,
        others: OtherFronts,
    ) -> None:
        self._settings = settings
        self._num_fronts = num_fronts
        self._channel = channel
        self._writer = writer
        self._others = others
        self._lifecycle = Lifecycle()
        self._metrics = Metrics(cpu_limit_cores())
        self._credentials = Credentials(settings.security)
        self._credential_files = CredentialReloader(self._credentials, self._metrics)
        self._front: GrpcFront | None = None
        self._tracing = start_tracing(settings.tracing, self._metrics.trace_spans)
        self._statistics = AskedStatistics(channel.send)
        self._port: asyncio.Future[int]
        self._is_over = asyncio.Event()
        self._changes = ForwardedChanges(channel.send)
        self._catalog: Catalog | None = None
        self._registry: Registry | None = None

    async def run(self, make_models: MakeModels) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(loop_error_handler(_leave))
        self._port = loop.create_future()
        self._models = make_models(self._settings.engine, self._metrics)
        self._channel.flush_in(loop)
        loop.add_reader(self._channel.fileno(), self._receive)
        publishing = asyncio.create_task(self._publish())
        reloading = asyncio.create_task(self._credential_files.run())
        serving = asyncio.create_task(self._serve())
        over = asyncio.create_task(self._is_over.wait())
        done, _ = await asyncio.wait([serving, over], return_when=asyncio.FIRST_COMPLETED)
        if serving in done:
            serving.result()
            await over
        publishing.cancel()
        reloading.cancel()
        if serving in done:
            assert self._front is not None
            self._lifecycle.phase = Phase.DRAINING
            self._front.show_health()
            await self._front.drain()
            self._lifecycle.phase = Phase.STOPPING
            await self._front.end()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._metrics.publish(self._writer)
        self._models.close()

    async def _serve(self) -> None:
        """Answer calls, once there are models and a port."""
        await self._models.loaded.wait()
        self._registry = registry = self._models.registry(is_first=False)
        if self._catalog is not None:
            registry.show(self._catalog)
        front = GrpcFront(
            self._settings,
            self._credentials,
            self._lifecycle,
            self._metrics,
            _on_crash,
            num_fronts=self._num_fronts,
            tracing=self._tracing,
            read_statistics=self._statistics.read,
        )
        front.count_clients_with(self._others)
        self._front = front
        port = await self._port
        self._lifecycle.phase = Phase.SERVING  # others serve on the port: a call may come at once
        allows_changes = self._settings.models.allow_changes
        await front.start(registry, port, self._changes if allows_changes else None)
        gc.freeze()
        self._metrics.publish(self._writer)
        self._channel.send(Serving())

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(PUBLISH_INTERVAL_S)
            self._metrics.publish(self._writer)

    def _receive(self) -> None:
        """Obey what the server process has sent; end this process where that has ended."""
        try:
            while received := self._channel.receive():
                self._obey(*received)
        except ConnectionError:
            os._exit(0)  # there is no engine any more

    def _obey(self, message: ToFront, descriptors: list[int]) -> None:
        if isinstance(message, UseEngine):
            [descriptor] = descriptors
            self._models.connect(socket.socket(fileno=descriptor))
        elif isinstance(message, Listen):
            if not self._port.done():
                self._port.set_result(message.port)
        elif isinstance(message, Reload):
            self._use(ServerSettings.model_validate_json(message.settings))
        elif isinstance(message, SetFailing):
            self._set_failing(is_failing=message.is_failing)
        elif isinstance(message, ShowStatistics):
            self._statistics.receive(message)
        elif isinstance(message, ShowCatalog):
            self._show(descriptors)
        elif isinstance(message, ChangeMade):
            self._changes.receive(message)
        elif isinstance(message, Drain):
            self._is_over.set()

    def _set_failing(self, *, is_failing: bool) -> None:
        self._lifecycle.is_failing = is_failing
        if self._front is not None:
            self._front.show_health()

    def _show(self, descriptors: list[int]) -> None:
        """Use a catalog. One that this process could not take, having too many files open, is replaced by the next."""
        for descriptor in descriptors:
            self._catalog = msgspec.msgpack.decode(read_memory_file(descriptor), type=Catalog)
            if self._registry is not None:
                self._registry.show(self._catalog)

    def _use(self, settings: ServerSettings) -> None:
        """Take up what has changed; the server process has checked it, and says so in the log."""
        self._settings = settings
        set_level(settings.logging.level)
        self._credential_files.reload(at_once=True)
        if self._front is not None:
            self._front.use(settings)


def _leave(reason: str) -> NoReturn:
    _log.warning("exiting_at_once", reason=reason)
    os._exit(EXIT_BROKEN)


def _on_crash(error: BaseException) -> None:
    _log.error("broken", exc_info=error)
    _leave(f"gRPC accepts no more calls: {type(error).__name__}")
