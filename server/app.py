"""The one composition root: from settings to a server that answers, and from a signal to its end.

Start: metrics over HTTP, models, golden examples, gRPC, health. End: readiness off, go on serving for
`drain_delay_s`, refuse new calls, let running ones finish within `drain_timeout_s`, leave.
"""

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from prometheus_client import disable_created_metrics

from dragoman.common.cpu import cpu_limit_cores
from dragoman.common.errors import DragomanError, UsageError
from dragoman.server.config import ServerSettings
from dragoman.server.engine.layout import run_in_processes
from dragoman.server.engine.processes.supervisor import Supervisor
from dragoman.server.errors import AddressError
from dragoman.server.fronts.grpc.front import SERVICE_NAMES, GrpcFront
from dragoman.server.fronts.grpc.listening import check_free, hold_port
from dragoman.server.fronts.grpc.unix_sockets import SocketFile
from dragoman.server.fronts.processes.layout import num_fronts, share
from dragoman.server.fronts.processes.supervisor import Fronts
from dragoman.server.lifecycle import Lifecycle, Phase
from dragoman.server.models.registry import Registry
from dragoman.server.models.running import ModelsInProcesses, ModelsInThreads, RunningModels
from dragoman.server.models.starting import start_host
from dragoman.server.operations.endpoints import OperationsServer
from dragoman.server.operations.log_writer import DroppedLinesCollector
from dragoman.server.operations.logs import ServerLog, queued_logs
from dragoman.server.operations.metrics import Metrics
from dragoman.server.operations.stop_signals import EXIT_BROKEN, StopSignals, leaving_on_dead_threads

__all__ = ["SERVICE_NAMES", "Server", "run", "serve"]

END_S = 8.0
"""How long the server may take to end once the drain's time is over. Longer than the sum of what it waits for
then: gRPC (`STOP_LIMIT_S`), loading, lanes, the log."""

REPORT_INTERVAL_S = 5.0
"""How often the log says how many lines were held back."""

_log = structlog.get_logger(__name__)


def serve(
    settings: ServerSettings,
    signals: StopSignals,
    *,
    raise_errors: bool = False,
    host: Supervisor | None = None,
) -> int:
    """Serve until a signal says stop; returns the process's exit code. A failure to start is one line.

    Args:
        settings: Where to listen, what to serve.
        signals: Say when to stop.
        raise_errors: Raise what keeps the server from starting, instead of logging it.
        host: The engine's host if it has been started (`start_host`): it loads models while this process imports.

    Raises:
        UsageError: there is no model to serve, or a bundle cannot be believed.
        OperationError: a port is in use.
    """
    # Texts are tokenised in one thread: a pool of `tokenizers` would take the cores from the lanes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, of use to nobody here
    with queued_logs(settings.logging) as log, leaving_on_dead_threads(signals, _log_death):
        signals.before_leaving = partial(_say_last, log)
        runner = asyncio.Runner()
        try:
            is_over = runner.run(run(settings, signals, log, host))
        except DragomanError as error:
            runner.close()
            if raise_errors:
                raise
            _log.error("cannot_serve", error=str(error))
            return 2 if isinstance(error, UsageError) else 1
        except BaseException as error:  # noqa: BLE001  an orderly end might wait for ever now
            if _is_shortage(error):
                _log.error(
                    "broken", error=f"this process can have no more memory or threads: {error or 'no memory'}"
                )
            else:
                _log.error("broken", exc_info=error)
            signals.leave(EXIT_BROKEN, "the event loop ended")
        if not is_over:  # native threads still run: what they use must stay
            signals.leave(0, "calls or models did not end in time")
        runner.close()
    return 0


async def run(
    settings: ServerSettings, signals: StopSignals, log: ServerLog, host: Supervisor | None = None
) -> bool:
    """Serve until a signal comes, then drain; returns whether everything has ended.

    Raises:
        UsageError: there is no model to serve, or a bundle cannot be believed.
        OperationError: a port is in use.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(partial(_on_loop_error, signals))
    signals.limit_s = settings.server.drain_delay_s + settings.server.drain_timeout_s + END_S
    signals.call_on_stop(partial(_stop_soon, loop, stop))
    try:
        server = Server(settings, partial(_on_crash, signals), host)
    except BaseException:
        if host is not None:
            host.close_at_once()
        raise
    if log.writer is not None:
        server.metrics.read_at_scrape(DroppedLinesCollector(log.writer))
    reporting = asyncio.create_task(_report_losses(log))
    try:
        await server.start(stop)
        # What was loaded stays: a full collection would look through all of it for 50 ms, lanes waiting.
        gc.freeze()
        await stop.wait()
        _log.info("stopping", signal=signals.first and signals.first.name)
        await server.drain()
    finally:
        reporting.cancel()
        is_over = await server.close()
    log.report_losses()
    _log.info("stopped")
    return is_over


def _stop_soon(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """From another thread: set `stop`. A loop that is closed has stopped already; the log may still be written."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(stop.set)


def _is_shortage(error: BaseException) -> bool:
    """Whether the system refused memory or a thread. Where that happened in our code says nothing then."""
    no_thread = isinstance(error, RuntimeError) and str(error) == "can't start new thread"
    return no_thread or isinstance(error, MemoryError)


async def _report_losses(log: ServerLog) -> None:
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S)
        log.report_losses()


def _say_last(log: ServerLog, reason: str) -> None:
    _log.warning("exiting_at_once", reason=reason)
    log.flush()


def _log_death(dead: threading.ExceptHookArgs) -> None:
    _log.error("thread_died", thread=dead.thread and dead.thread.name, exc_info=dead.exc_value)


def _on_crash(signals: StopSignals, error: BaseException) -> None:
    if isinstance(error, DragomanError):
        _log.error("broken", error=str(error))
        signals.leave(EXIT_BROKEN, "there is no engine any more")
    _log.error("broken", exc_info=error)
    signals.leave(EXIT_BROKEN, f"gRPC accepts no more calls: {type(error).__name__}")


def _on_loop_error(signals: StopSignals, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what a callback raised. Short of memory, the loop would go on without what the callback was for."""
    loop.default_exception_handler(context)
    error = context.get("exception")
    if "handle" in context and (isinstance(error, MemoryError) or not isinstance(error, Exception)):
        signals.leave(EXIT_BROKEN, f"{type(error).__name__} in the event loop")


class Server:
    """The parts and the order in which they start and stop.

    Attributes:
        port: gRPC's bound port, once started.
        metrics_port: HTTP's bound port.
        lifecycle: read it, leave it alone.
        metrics: of this server only.
    """

    def __init__(
        self,
        settings: ServerSettings,
        on_crash: Callable[[BaseException], object] = lambda _: None,
        host: Supervisor | None = None,
    ) -> None:
        """Open the metrics port, so that a scrape sees the server load.

        `on_crash` is called when the server can answer no more calls. `host` is the engine's host if it has been
        started; it ends with this server.

        Raises:
            AddressError: one of the two ports is in use.
        """
        self._started = time.perf_counter()
        self._settings = settings
        listen = settings.server
        self._num_fronts = num_fronts(settings, lanes_are_processes=run_in_processes(settings.engine))
        self._share = share(settings, self._num_fronts)
        self.lifecycle = Lifecycle()
        self.metrics = Metrics(cpu_limit_cores())
        self.metrics.processes.watch(os.getpid(), "front-0")
        self.port = 0
        check_free(listen.host, listen.port)
        self._port_holder = hold_port(listen.host, listen.port) if self._num_fronts > 1 else None
        try:
            self._operations = OperationsServer(
                listen.http_host, listen.metrics_port, self.metrics.page, self.lifecycle
            )
        except AddressError:
            if self._port_holder is not None:
                self._port_holder.close()
            raise
        self.metrics_port = self._operations.port
        self._registry = Registry([])
        self._front = GrpcFront(
            self._share.server, self.lifecycle, self.metrics, on_crash, num_fronts=self._num_fronts
        )
        self._fronts: Fronts | None = None
        self._host = host
        self._on_crash = on_crash
        self._models: RunningModels | None = None
        self._socket_file: SocketFile | None = None

    async def start(self, stop: asyncio.Event | None = None) -> None:
        """Load the models and listen; returns when calls are answered, or early when `stop` is set.

        Raises:
            UsageError: there is no model to serve, or a bundle cannot be believed.
            AddressError: the port is in use.
        """
        stop = stop or asyncio.Event()
        self._models = self._running_models()
        registry = await self._models.load(stop)
        if registry is None:
            return
        self._registry = registry
        listen, port = self._settings.server, self._settings.server.port
        if self._fronts is not None and self._port_holder is not None:
            port = self._port_holder.getsockname()[1]
            await self._fronts.listen(port, stop)
            if stop.is_set():
                return
        await self._front.start(self._registry, port)
        self.port = self._front.port
        self._socket_file = SocketFile.of(listen.host)
        self.lifecycle.phase = Phase.SERVING
        _log.info(
            "serving",
            host=listen.host,
            port=self.port,
            metrics_port=self.metrics_port,
            models=[f"{model.name}/{model.version}" for model in self._registry.models],
            fronts=self._num_fronts,
            seconds=round(time.perf_counter() - self._started, 3),
        )

    async def drain(self) -> None:
        """Readiness off, go on serving, refuse new calls, finish what runs."""
        self.lifecycle.phase = Phase.DRAINING
        self._front.leave_health()
        async with asyncio.TaskGroup() as draining:
            draining.create_task(self._front.drain())
            if self._fronts is not None:
                draining.create_task(self._fronts.drain())
        self.lifecycle.phase = Phase.STOPPING
        await self._front.end()

    async def close(self) -> bool:
        """Stop whatever still runs, within seconds; returns whether everything has ended."""
        self.lifecycle.phase = Phase.STOPPING
        is_over = await self._front.end()
        if self._socket_file is not None:
            self._socket_file.remove()
        if self._fronts is not None:
            await self._fronts.close()
        if self._port_holder is not None:
            self._port_holder.close()
        if self._models is not None:
            is_over &= await self._models.close()
        await asyncio.to_thread(self._operations.close)
        return is_over

    def _running_models(self) -> RunningModels:
        host = self._host or start_host(self._settings)
        if host is None:
            return ModelsInThreads(self._settings, self.metrics)
        models = ModelsInProcesses(host, self._share, self.metrics, self._on_crash)
        if self._num_fronts > 1:
            self._fronts = Fronts(self._share, self._num_fronts - 1, self.metrics, models.connect_front)
            models.on_new_host, models.front_pids = self._fronts.use_engine, self._fronts.pids
            self._fronts.start()
        return models
