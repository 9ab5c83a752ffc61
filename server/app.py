"""The one composition root: the parts of a server, and the order in which they start and stop.

Start: metrics over HTTP, models with their lanes, further fronts, gRPC, health. End: readiness off, go on serving for
`drain_delay_s`, refuse new calls, let running ones finish within `drain_timeout_s`, leave. `server/serving.py` is the
process around it.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from functools import partial

import structlog

from dragoman.common.cpu import cpu_limit_cores
from dragoman.common.errors import OperationError
from dragoman.server.config import ServerSettings
from dragoman.server.engine.layout import lane_layout, run_in_processes
from dragoman.server.engine.processes.supervisor import Supervisor
from dragoman.server.errors import AddressError
from dragoman.server.fronts.grpc.front import RELOADABLE_KEYS, SERVICE_NAMES, GrpcFront
from dragoman.server.fronts.grpc.listening import check_free, hold_port, is_local
from dragoman.server.fronts.grpc.unix_sockets import SocketFile
from dragoman.server.fronts.processes.layout import num_fronts, share
from dragoman.server.fronts.processes.supervisor import Fronts
from dragoman.server.lifecycle import Lifecycle, Phase
from dragoman.server.models.catalog import Catalog, VersionState
from dragoman.server.models.changes import ModelChanges
from dragoman.server.models.process_memory import check_processes_fit
from dragoman.server.models.registry import Registry
from dragoman.server.models.repository import Repository
from dragoman.server.models.running import ModelsInProcesses, ModelsInThreads, RunningModels
from dragoman.server.models.starting import start_host
from dragoman.server.operations.endpoints import OperationsServer
from dragoman.server.operations.failure_history import FailureHistory
from dragoman.server.operations.logs import set_level
from dragoman.server.operations.metrics import Metrics
from dragoman.server.operations.reload import Reloader
from dragoman.server.operations.reloading import CredentialReloader
from dragoman.server.operations.tracing import start_tracing
from dragoman.server.security.credentials import Credentials

__all__ = ["SERVICE_NAMES", "Server"]

JUDGING_INTERVAL_S = 1.0
"""How often it is looked whether parts have stopped to die."""
STUCK_S = 1.0
"""From a lane's thread that is stuck to the end of the process: clients and probes hear of it in this time."""

_log = structlog.get_logger(__name__)


class Server:
    """The parts and the order in which they start and stop.

    Attributes:
        port: gRPC's bound port, once started.
        metrics_port: HTTP's bound port.
        lifecycle: read it, leave it alone.
        metrics: of this server only.
        reloader: has what can change while the server runs.
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
            ResourceUnavailable: there is no memory for the processes that the settings ask for.
            CredentialsError: a certificate, a key or the tokens file is not right.
            MissingExtraError: calls should be traced, and OpenTelemetry is not installed.
        """
        self._started = time.perf_counter()
        self._settings = settings
        listen = settings.server
        num_lanes, _ = lane_layout(settings.engine)
        lanes_are_processes = run_in_processes(settings.engine)
        self._num_fronts = num_fronts(settings, lanes_are_processes=lanes_are_processes)
        check_processes_fit(self._num_fronts, num_lanes if lanes_are_processes else 0)
        self._share = share(settings, self._num_fronts)
        self.lifecycle = Lifecycle()
        self.metrics = Metrics(cpu_limit_cores())
        self.metrics.processes.watch(os.getpid(), "front-0")
        self.metrics.watch_phase(lambda: self.lifecycle.condition)
        self.port = 0
        self._credentials = Credentials(settings.security)
        self._credential_files = CredentialReloader(self._credentials, self.metrics)
        self._tracing = start_tracing(self._share.tracing, self.metrics.trace_spans)
        check_free(listen.host, listen.port)
        self._port_holder = hold_port(listen.host, listen.port) if self._num_fronts > 1 else None
        try:
            self._operations = OperationsServer(
                settings, self._credentials, self.metrics.page, self.lifecycle
            )
        except AddressError:
            if self._port_holder is not None:
                self._port_holder.close()
            raise
        self.metrics_port = self._operations.port
        self._registry = Registry([])
        self._front = GrpcFront(
            self._share,
            self._credentials,
            self.lifecycle,
            self.metrics,
            on_crash,
            num_fronts=self._num_fronts,
            tracing=self._tracing,
        )
        self._fronts: Fronts | None = None
        self._host = host
        self._on_crash = on_crash
        self._models: RunningModels | None = None
        self._socket_file: SocketFile | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._history = FailureHistory(num_lanes)
        self._judging: asyncio.Task[None] | None = None
        self._repository: Repository | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stop_watching = asyncio.Event()
        self.reloader = Reloader(settings)
        self._register_reloadable()

    async def start(self, stop: asyncio.Event | None = None) -> None:
        """Load the models and listen; returns when calls are answered, or early when `stop` is set.

        Raises:
            UsageError: there is no model to serve, or a bundle cannot be believed.
            AddressError: the port is in use.
        """
        stop = stop or asyncio.Event()
        self._reloading = asyncio.create_task(self._credential_files.run())
        self._judging = asyncio.create_task(self._judge_again())
        self._models = self._running_models()
        registry = await self._models.load(stop)
        if registry is None:
            return
        self._registry = registry
        listen, port = self._settings.server, self._settings.server.port
        changes = await self._begin_repository(self._models)
        if self._fronts is not None and self._port_holder is not None:
            port = self._port_holder.getsockname()[1]
            await self._fronts.listen(port, stop)
            if stop.is_set():
                return
        await self._front.start(self._registry, port, changes)
        self.port = self._front.port
        self._socket_file = SocketFile.of(listen.host)
        self.lifecycle.phase = Phase.SERVING
        self._begin_watch()
        _log.info(
            "serving",
            host=listen.host,
            port=self.port,
            metrics_port=self.metrics_port,
            models=[f"{model.name}/{model.version}" for model in self._registry.models],
            fronts=self._num_fronts,
            seconds=round(time.perf_counter() - self._started, 3),
        )
        security = self._settings.security
        if security.tokens_file and security.tls_certificate is None and not is_local(listen.host):
            _log.warning("tokens_in_plain_text", host=listen.host, remedy="security.tls_certificate")

    async def drain(self) -> None:
        """Readiness off, go on serving, refuse new calls, finish what runs."""
        self.lifecycle.phase = Phase.DRAINING
        self._stop_watching.set()
        self._front.show_health()
        async with asyncio.TaskGroup() as draining:
            draining.create_task(self._front.drain())
            if self._fronts is not None:
                draining.create_task(self._fronts.drain())
        self.lifecycle.phase = Phase.STOPPING
        await self._front.end()

    async def close(self) -> bool:
        """Stop whatever still runs, within seconds; returns whether everything has ended."""
        self.lifecycle.phase = Phase.STOPPING
        for task in (self._reloading, self._judging):
            if task is not None:
                task.cancel()
        is_over = await self._front.end()
        if self._socket_file is not None:
            self._socket_file.remove()
        if self._fronts is not None:
            await self._fronts.close()
        if self._port_holder is not None:
            self._port_holder.close()
        await self._end_repository()
        if self._models is not None:
            is_over &= await self._models.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        await asyncio.to_thread(self._operations.close)
        return is_over

    async def _begin_repository(self, models: RunningModels) -> ModelChanges | None:
        """Show all fronts what was loaded; returns what makes the changes of it that callers ask for, if they may."""
        settings = self._settings.models
        self._repository = Repository(settings.directory, models, serves_all=settings.versions == "all")
        self._repository.show = self._show
        await self._repository.begin(self._registry)
        if not settings.allow_changes:
            return None
        if self._fronts is not None:
            self._fronts.changes = self._repository
        return self._repository

    def _show(self, catalog: Catalog) -> None:
        self._registry.show(catalog)
        if self._fronts is not None:
            self._fronts.show(catalog)
        active = [
            each for each in catalog.versions if each.version and each.state is not VersionState.UNLOADED
        ]
        self.metrics.show_models(
            ((each.name, each.version, each.state.value) for each in active),
            (each.reason for each in catalog.versions if each.reason),
        )

    def _begin_watch(self) -> None:
        settings = self._settings.models
        if settings.watch and self._repository is not None:
            from dragoman.server.models.folder_watch import FolderWatch  # noqa: PLC0415  watchfiles: 0.05 s

            watch = FolderWatch(self._repository, settings.directory, serves_all=settings.versions == "all")
            self._watching = asyncio.create_task(watch.run(self._stop_watching))

    async def _end_repository(self) -> None:
        self._stop_watching.set()
        if self._watching is not None:
            self._watching.cancel()  # first: it could begin a change after the repository's end
        if self._repository is not None:
            await self._repository.close()
        if self._watching is not None:
            await asyncio.wait([self._watching])

    def _register_reloadable(self) -> None:
        def use(settings: ServerSettings) -> None:
            set_level(settings.logging.level)
            self._front.use(share(settings, self._num_fronts))

        def use_in_fronts(settings: ServerSettings) -> None:
            if self._fronts is not None:
                self._fronts.use(share(settings, self._num_fronts))

        register = self.reloader.register
        register("certificates and tokens", lambda _: self._credential_files.reload(at_once=True))
        register("log and limits", use, keys=RELOADABLE_KEYS)
        if self._num_fronts > 1:
            register("further fronts", use_in_fronts)

    def part_died(self) -> None:
        """A lane, a host or a front has died. Where that happens again and again, this server is not ready."""
        self._history.add(time.monotonic())
        self._judge()

    def _judge(self) -> None:
        now_s = time.monotonic()
        is_failing = not self._history.is_ready(now_s)
        self.lifecycle.is_alive = self._history.is_alive(now_s)
        if is_failing == self.lifecycle.is_failing:
            return
        self.lifecycle.is_failing = is_failing
        _log.log(logging.ERROR if is_failing else logging.INFO, "failing" if is_failing else "recovered")
        self._front.show_health()
        if self._fronts is not None:
            self._fronts.set_failing(is_failing=is_failing)

    def _lane_stuck(self, loop: asyncio.AbstractEventLoop, lane: int) -> None:
        """From another thread: a lane's thread does not go on, and cannot be ended. So the process has to end."""
        self.lifecycle.is_stuck = True
        error = OperationError(f"lane {lane} gives no sign of life, and a thread cannot be ended")

        def end() -> None:
            self._front.show_health()
            loop.call_later(STUCK_S, self._on_crash, error)  # callers hear what has failed before

        with contextlib.suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(end)

    async def _judge_again(self) -> None:
        """It gets better by itself."""
        while True:
            await asyncio.sleep(JUDGING_INTERVAL_S)
            self._judge()

    def _running_models(self) -> RunningModels:
        host = self._host or start_host(self._settings)
        if host is None:
            on_stuck = partial(self._lane_stuck, asyncio.get_running_loop())
            return ModelsInThreads(self._settings, self.metrics, on_stuck)
        models = ModelsInProcesses(host, self._share, self.metrics, self._on_crash)
        models.on_death = self.part_died
        if self._num_fronts > 1:
            self._fronts = Fronts(self._share, self._num_fronts - 1, self.metrics, models.connect_front)
            models.on_new_host, models.front_pids = self._fronts.use_engine, self._fronts.pids
            self._fronts.on_death = self.part_died
            self._front.count_clients_with(self._fronts.clients_of(0))
            self._fronts.start()
        return models
