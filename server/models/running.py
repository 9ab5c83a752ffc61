"""The models of a running server: loaded, and with lanes, in the layout that the settings ask for.

What a layout needs is imported with it: with lanes in processes, this process has no ONNX Runtime and no numpy.
"""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import structlog

from dragoman.common.errors import DragomanError
from dragoman.common.memory import proportional_bytes, readable_bytes
from dragoman.server.config import ServerSettings
from dragoman.server.engine.processes.messages import LoadVersion, UnloadVersion
from dragoman.server.engine.processes.supervisor import HostDied, Supervisor
from dragoman.server.models.hosted import HostedModels
from dragoman.server.models.registry import Registry
from dragoman.server.operations.metrics import Metrics

if TYPE_CHECKING:
    from dragoman.server.models.threaded import ThreadedModels

__all__ = ["ModelsInProcesses", "ModelsInThreads", "RunningModels"]

LOADING_LIMIT_S = 1.0
"""How long the end waits for a loading that cannot be interrupted."""
LANES_LIMIT_S = 2.0
"""How long the end waits for lanes that are threads: they end after the step that they compute."""
MEMORY_LOG_DELAY_S = 1.0
"""From a change to the log line about memory. The first calls have come then, and changes that follow share a line."""

_log = structlog.get_logger(__name__)


class RunningModels(Protocol):
    """Models with their lanes, from `load` to `close`. Its owner makes one change at a time (`Repository`)."""

    async def load(self, stop: asyncio.Event) -> Registry | None:
        """Load all models and start their lanes; returns None when `stop` is set first.

        Raises:
            DragomanError: nothing of what is there can be served.
        """

    async def load_version(self, name: str, version: str) -> None:
        """Serve a version beside the others; returns when each front has it.

        Raises:
            DragomanError: it cannot be served. What was served before is served on.
        """

    async def unload_version(self, name: str, version: str) -> None:
        """Serve a version no longer; returns when its calls have ended in each front and its memory is free.

        Calls that outlast `server.drain_timeout_s` fail.

        Raises:
            DragomanError: it is not served.
        """

    async def close(self) -> bool:
        """Stop the lanes, within seconds; returns whether they have ended."""


class ModelsInThreads:
    """Models of this process; lanes are threads of it."""

    def __init__(
        self, settings: ServerSettings, metrics: Metrics, on_stuck: Callable[[int], object] = lambda _: None
    ) -> None:
        """`on_stuck` is called, in some thread, with a lane that gives no sign of life."""
        self._settings = settings
        self._on_stuck = on_stuck
        self._metrics = metrics
        self._models: ThreadedModels | None = None
        self._loading: asyncio.Task[None] | None = None

    async def load(self, stop: asyncio.Event) -> Registry | None:
        """As `RunningModels` has it. A loading that has begun goes on when `stop` is set."""
        from dragoman.server.models.threaded import ThreadedModels  # noqa: PLC0415  ONNX Runtime: 0.1 s

        models = self._models = ThreadedModels(self._settings.engine, self._on_stuck)
        directory = self._settings.models.directory
        self._loading = asyncio.create_task(
            asyncio.to_thread(
                models.load_all,
                directory,
                all_versions=self._settings.models.versions == "all",
                should_stop=stop.is_set,
            )
        )
        await _first(self._loading, asyncio.create_task(stop.wait()))
        if self._loading.done():
            self._loading.result()  # or what it raised
        return None if stop.is_set() else models.registry(self._metrics)

    async def load_version(self, name: str, version: str) -> None:
        """As `RunningModels` has it. A version is tried in this process: native code that crashes ends the server."""
        from dragoman.server.models.loader import version_folder  # noqa: PLC0415

        assert self._models is not None
        await self._models.load_version(version_folder(self._settings.models.directory, name, version))

    async def unload_version(self, name: str, version: str) -> None:
        """As `RunningModels` has it."""
        assert self._models is not None
        await self._models.unload_version(f"{name}/{version}", self._settings.server.drain_timeout_s)

    async def close(self) -> bool:
        """As `RunningModels` has it."""
        if self._loading is None or self._models is None:
            return True
        done, _ = await asyncio.wait([self._loading], timeout=LOADING_LIMIT_S)
        if done:
            self._loading.exception()  # `load` has raised it, or the stop came first
        return await asyncio.to_thread(self._models.close, LANES_LIMIT_S) and bool(done)


class ModelsInProcesses:
    """Models of the engine's host; lanes are processes that it has forked.

    Args:
        host: the host's supervisor.
        settings: of the server.
        metrics: of this process.
        on_failure: called when there will be no host any more, though there was one.

    Attributes:
        on_death: called when a lane or a host has died; another one takes its place.
        on_new_host: called when a host has taken the place of another one, and this front is connected with it.
        front_pids: the processes of further fronts.
    """

    def __init__(
        self,
        host: Supervisor,
        settings: ServerSettings,
        metrics: Metrics,
        on_failure: Callable[[DragomanError], object],
    ) -> None:
        self.host = host
        self.on_death: Callable[[], object] = lambda: None
        self.on_new_host: Callable[[], object] = lambda: None
        self.front_pids: Callable[[], list[int]] = list
        self._numbers = itertools.count()
        self._on_failure = on_failure
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._versions: list[str] = []
        self._memory_log: asyncio.Task[None] | None = None
        self._metrics = metrics
        self._models = HostedModels(settings.engine, metrics, self.host_failed)
        self._models.on_lane_died = self._lane_died

    async def load(self, stop: asyncio.Event) -> Registry | None:
        """As `RunningModels` has it."""
        self.host.watch(self)
        self._connect()
        loaded = asyncio.create_task(self._models.loaded.wait())
        await _first(self._failure, loaded, asyncio.create_task(stop.wait()))
        if self._failure.done():
            self._failure.result()  # which it raises
        if stop.is_set():
            return None
        registry = self._models.registry()
        self._versions = [f"{model.name}/{model.version}" for model in registry.models]
        self.host.reload(self._versions)
        self._log_memory_soon()
        return registry

    async def load_version(self, name: str, version: str) -> None:
        """As `RunningModels` has it. Where the host dies meanwhile, the next one loads what was served before."""
        await self.host.change(LoadVersion(name, version))
        self._versions = [*self._versions, f"{name}/{version}"]
        self.host.reload(self._versions)
        self._log_memory_soon()

    async def unload_version(self, name: str, version: str) -> None:
        """As `RunningModels` has it. Where the host dies meanwhile, the next one does not load the version."""
        key = f"{name}/{version}"
        self._versions = [each for each in self._versions if each != key]
        self.host.reload(self._versions)
        with contextlib.suppress(HostDied):
            await self.host.change(UnloadVersion(name, version))
        self._log_memory_soon()

    async def close(self) -> bool:
        """As `RunningModels` has it. Nothing waits for the step of a lane."""
        if self._memory_log is not None:
            self._memory_log.cancel()
        self._models.close()
        await self.host.close()
        if self._failure.done():
            self._failure.exception()  # `load` has raised it
        return True

    def _log_memory_soon(self) -> None:
        if self._memory_log is None or self._memory_log.done():
            self._memory_log = asyncio.create_task(self._log_memory())

    async def _log_memory(self) -> None:
        """Log what the processes take of memory, each page counted once (PSS).

        Reading it takes milliseconds, in which the processes that are read wait for pages: neither the start nor a
        change waits for that.
        """
        await asyncio.sleep(MEMORY_LOG_DELAY_S)
        fronts = [os.getpid(), *self.front_pids()]
        pids = [self.host.pid, *fronts, *self._models.pids.values()]
        host, *each = await asyncio.to_thread(_proportional_bytes, pids)
        of_fronts, of_lanes = each[: len(fronts)], each[len(fronts) :]
        _log.info(
            "memory",
            server=readable_bytes(of_fronts[0]),
            further_fronts=readable_bytes(sum(of_fronts[1:])),
            host=readable_bytes(host),
            lanes=readable_bytes(sum(of_lanes)),
            num_lanes=len(of_lanes),
            total=readable_bytes(host + sum(each)),
        )

    def connect_front(self) -> socket.socket:
        """A front's end of a new channel with the present host.

        Raises:
            ConnectionError: the host has ended; there will be another one, or none.
        """
        return self.host.connect(next(self._numbers))

    def _connect(self) -> None:
        self._metrics.processes.watch(self.host.pid, "engine-host")
        with contextlib.suppress(ConnectionError):  # it has ended already, which its supervisor hears next
            self._models.connect(self.connect_front())

    def _lane_died(self) -> None:
        self.on_death()

    def host_started(self) -> None:
        """As `supervisor.Listener` has it."""
        self.on_death()
        self._connect()
        self.on_new_host()

    def host_failed(self, error: DragomanError) -> None:
        """As `supervisor.Listener` has it."""
        if self._models.loaded.is_set():
            self._on_failure(error)
        elif not self._failure.done():
            self._failure.set_exception(error)


def _proportional_bytes(pids: Sequence[int]) -> list[int]:
    return [proportional_bytes(pid) for pid in pids]


async def _first(*waits: "asyncio.Future[None] | asyncio.Task[None] | asyncio.Task[bool]") -> None:
    """Wait for one of these; the last is given up then."""
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    waits[-1].cancel()
