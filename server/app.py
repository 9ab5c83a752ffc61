"""The one composition root: from settings to a server that answers, and from a signal to its end.

Start: metrics over HTTP, models, golden examples, gRPC, health. End: readiness off, go on serving for
`drain_delay_s`, refuse new calls, let running ones finish within `drain_timeout_s`, leave.
"""

import asyncio
import contextlib
import gc
import os
import signal
import time

import grpc
import grpc.aio
import structlog
from dragoman.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    translation_pb2,
    translation_pb2_grpc,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import disable_created_metrics

from common.cpu import cpu_limit_cores
from common.errors import DragomanError, UsageError
from server.config import ServerSettings
from server.http import OperationsServer
from server.interceptors import CallInterceptor
from server.lifecycle import Lifecycle, Phase
from server.listening import bind, channel_options, check_free
from server.logs import configure_logs
from server.metrics import Metrics
from server.registry import Registry, load_models
from server.runtime import Runtime
from server.services.generation import GenerationServicer
from server.services.model import ModelServicer
from server.services.translation import TranslationServicer

__all__ = ["SERVICE_NAMES", "Server", "run", "serve"]

SERVICE_NAMES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (translation_pb2, "TranslationService"),
        (generation_pb2, "GenerationService"),
        (model_pb2, "ModelService"),
    )
)

MAX_TAKE_UP_S = 1.0
"""How long new calls may put off the end of listening."""

_log = structlog.get_logger(__name__)


def serve(settings: ServerSettings) -> int:
    """Serve until a signal says stop; returns the process's exit code. A failure to start is one line."""
    configure_logs(settings.logging)
    # Texts are tokenised in one thread: a pool of `tokenizers` would take the cores from the lanes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, of use to nobody here
    try:
        asyncio.run(run(settings))
    except DragomanError as error:
        _log.error("cannot_serve", error=str(error))
        return 2 if isinstance(error, UsageError) else 1
    return 0


async def run(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    Raises:
        UsageError: there is no model to serve, or a bundle cannot be believed.
        OperationError: a port is in use.
    """
    stop = asyncio.Event()
    _install_signal_handlers(stop)
    server = Server(settings)
    try:
        await server.start(stop)
        # What was loaded stays: a full collection would look through all of it for 50 ms, lanes waiting.
        gc.freeze()
        await stop.wait()
        await server.drain()
    finally:
        await server.close()
    _log.info("stopped")


class Server:
    """The parts and the order in which they start and stop.

    Attributes:
        port: gRPC's bound port, once started.
        metrics_port: HTTP's bound port.
        lifecycle: read it, leave it alone.
        metrics: of this server only.
    """

    def __init__(self, settings: ServerSettings) -> None:
        """Open the metrics port, so that a scrape sees the server load.

        Raises:
            AddressError: one of the two ports is in use.
        """
        self._started = time.perf_counter()
        self._settings = settings
        listen = settings.server
        self.lifecycle = Lifecycle()
        self.metrics = Metrics(cpu_limit_cores())
        self.port = 0
        check_free(listen.host, listen.port)
        metrics_host = listen.host if listen.metrics_host is None else listen.metrics_host
        self._operations = OperationsServer(
            metrics_host, listen.metrics_port, self.metrics.registry, self.lifecycle
        )
        self.metrics_port = self._operations.port
        self._registry = Registry([])
        self._health = health.aio.HealthServicer()
        self._interceptor: CallInterceptor | None = None
        self._grpc: grpc.aio.Server | None = None

    async def start(self, stop: asyncio.Event | None = None) -> None:
        """Load the models and listen; returns when calls are answered, or early when `stop` is set.

        Raises:
            UsageError: there is no model to serve, or a bundle cannot be believed.
            AddressError: the port is in use.
        """
        stop = stop or asyncio.Event()
        self._registry = await asyncio.to_thread(
            load_models,
            self._settings.models.directory,
            self._settings.engine,
            self.metrics,
            should_stop=stop.is_set,
        )
        if stop.is_set():
            return
        self._interceptor = CallInterceptor(self.metrics, self._registry)
        self._grpc = self._build_grpc(self._interceptor)
        listen = self._settings.server
        self.port = bind(self._grpc, listen.host, listen.port)
        for name in ("", *SERVICE_NAMES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._grpc.start()
        self.lifecycle.phase = Phase.SERVING
        _log.info(
            "serving",
            host=listen.host,
            port=self.port,
            metrics_port=self.metrics_port,
            models=[f"{model.name}/{model.version}" for model in self._registry.models],
            seconds=round(time.perf_counter() - self._started, 3),
        )

    async def drain(self) -> None:
        """Readiness off, go on serving, refuse new calls, finish what runs."""
        self.lifecycle.phase = Phase.DRAINING
        await self._health.enter_graceful_shutdown()
        if self._grpc is None or self._interceptor is None:
            return
        listen, in_flight = self._settings.server, self._interceptor.in_flight
        _log.info("draining", running=in_flight.count, delay_s=listen.drain_delay_s)
        await asyncio.sleep(listen.drain_delay_s)
        # gRPC drops calls that have arrived without having been taken up when it is told to stop.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(in_flight.wait_until_none_begins(), MAX_TAKE_UP_S)
        # It would wait for health watchers too, who never leave, hence the second stop below.
        refusing = asyncio.create_task(self._grpc.stop(listen.drain_timeout_s))
        try:
            await asyncio.wait_for(in_flight.wait_until_none_runs(), listen.drain_timeout_s)
        except TimeoutError:
            _log.warning("drain_timeout", cancelled=in_flight.count, timeout_s=listen.drain_timeout_s)
        self.lifecycle.phase = Phase.STOPPING
        await self._grpc.stop(None)
        await refusing

    async def close(self) -> None:
        """Stop whatever still runs."""
        self.lifecycle.phase = Phase.STOPPING
        if self._grpc is not None:
            await self._grpc.stop(None)
        await asyncio.to_thread(self._registry.close)
        await asyncio.to_thread(self._operations.close)

    def _build_grpc(self, interceptor: CallInterceptor) -> grpc.aio.Server:
        listen = self._settings.server
        server = grpc.aio.server(interceptors=[interceptor], options=channel_options(listen))
        runtime = Runtime(self._registry, self.lifecycle, max_inputs=listen.max_inputs)
        translation_pb2_grpc.add_TranslationServiceServicer_to_server(TranslationServicer(runtime), server)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(runtime), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(self._registry), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        return server


def _install_signal_handlers(stop: asyncio.Event) -> None:
    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            _log.warning("exiting_at_once", signal=number.name)
            os._exit(128 + number)
        _log.info("stopping", signal=number.name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
