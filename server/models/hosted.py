"""Models that the engine's host has loaded, as a front has them; their lanes are processes."""

import asyncio
import hashlib
import itertools
import socket
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import cast

from dragoman.common.errors import OperationError
from dragoman.server.bundle.manifest import Manifest
from dragoman.server.bundle.reader import make_tokenizer
from dragoman.server.config import EngineSettings
from dragoman.server.engine.api import Command, Report
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.known_lane import LaneUse
from dragoman.server.engine.processes.connection import HostConnection
from dragoman.server.engine.processes.link import SocketLink
from dragoman.server.engine.processes.messages import (
    LaneAdded,
    LaneRemoved,
    LaneRetired,
    ModelAdded,
    ModelLoaded,
    ModelNotLoaded,
    ModelRemoved,
)
from dragoman.server.engine.watchdog import NUM_LOOKS, patience_s
from dragoman.server.errors import NotLoadedReason
from dragoman.server.models.discovery import NotLoaded
from dragoman.server.models.registry import Registry, announce_not_loaded
from dragoman.server.models.served_model import ServedModel, announce, withdraw
from dragoman.server.models.unloading import end_calls
from dragoman.server.operations.metrics import Metrics

__all__ = ["HostedModels"]


@dataclass(eq=False, slots=True)
class _Hosted:
    """A model, and the digests of the manifest and the tokenizer that the host sent.

    Attributes:
        is_announced: whether the metrics know it, as it takes calls.
    """

    served: ServedModel
    digests: tuple[bytes, ...]
    is_announced: bool = False


@dataclass(eq=False, slots=True)
class _Lane:
    """A lane's process, as this front has it.

    Attributes:
        number: by which clients know it; no other process has it, though it may take this one's place.
        models: that it has, by key.
        use: of its rows by all models.
        link: None until it is open.
        is_retiring: whether it gets nothing more.
    """

    number: int
    pid: int
    models: dict[str, EngineClient]
    use: LaneUse = field(default_factory=LaneUse)
    link: SocketLink | None = None
    is_retiring: bool = False

    def receive(self, model: str, report: Report) -> None:
        """Hand a report to the client of its model."""
        if (client := self.models.get(model)) is not None:
            client.receive(self.number, report)


@dataclass(frozen=True, slots=True)
class _ModelLink:
    """A model's way to a lane: a `LaneLink`."""

    link: SocketLink
    model: str

    def send(self, command: Command) -> None:
        """As `LaneLink.send`."""
        self.link.send(self.model, command)


class HostedModels:
    """The models of one front: on its event loop, from its connection with the host.

    Attributes:
        not_loaded: what lies in the models folder and is not served.
        on_lane_died: called when a lane's process has ended out of turn.
        loaded: set when the host has announced all models, and links with all lanes are there.
        pids: the lanes' processes, by the lane's number among the host's.
    """

    def __init__(
        self,
        settings: EngineSettings,
        metrics: Metrics,
        on_failure: Callable[[OperationError], object] = lambda _: None,
    ) -> None:
        """Call on the event loop.

        `on_failure` is called when a host has another model under a key than the one before it had.
        """
        self.not_loaded: list[NotLoaded] = []
        self.loaded = asyncio.Event()
        self.pids: dict[int, int] = {}
        self.on_lane_died: Callable[[], object] = lambda: None
        self._settings = settings
        self._metrics = metrics
        self._on_failure = on_failure
        self._models: dict[str, _Hosted] = {}  # by key
        self._lanes: dict[int, _Lane] = {}  # those with an open link, by process
        self._opening: dict[int, asyncio.Task[None]] = {}  # what last had to do with a link, by process
        self._retiring: set[int] = set()  # processes that end in order
        self._numbers = itertools.count()
        self._connection: HostConnection | None = None
        self._announced: set[str] = set()  # models that the present host has, by key
        self._changing: asyncio.Task[None] | None = None  # the last change of what is there
        self._registry: Registry | None = None
        self._is_first = True
        self._is_closed = False

    def connect(self, sock: socket.socket) -> None:
        """Receive from a host: the first one, or one that takes another's place; `sock` is of `Supervisor.connect`."""
        if self._connection is not None:
            self._connection.close()
        self._announced = set()
        for pid in self.pids.values():  # they end with their host
            self._metrics.processes.forget(pid)
        self.pids.clear()
        self._retiring.clear()
        self._connection = HostConnection(sock, self)

    def registry(self, *, is_first: bool = True) -> Registry:
        """The models by name, with what is not served; known to the metrics. The first front logs them."""
        if is_first:
            announce_not_loaded(self.not_loaded, self._metrics)
        self._is_first = is_first
        self._registry = Registry([], self.not_loaded)
        for model in self._models.values():
            self._serve(model, self._registry)
        return self._registry

    def close(self) -> None:
        """Give up all lanes; what is not over fails with `EngineUnavailable`."""
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()
        for model in self._models.values():
            model.served.engine.close()
        for lane in list(self._lanes.values()):
            assert lane.link is not None
            lane.link.close()

    # What the host says.

    def model_loaded(self, model: ModelLoaded, manifest: bytes, tokenizer: bytes) -> None:
        """As `connection.Listener` has it."""
        self._announced.add(model.key)
        digests = tuple(hashlib.sha256(content).digest() for content in (manifest, tokenizer))
        if (known := self._models.get(model.key)) is not None:
            if digests != known.digests:
                self._on_failure(OperationError(f"{model.key} is not what was served before"))
            return
        parsed = Manifest.model_validate_json(manifest)
        metrics = self._metrics.for_model(model.name, parsed.task)
        served = ServedModel.of(
            name=model.name,
            version=model.version,
            manifest=parsed,
            tokenizer=make_tokenizer(tokenizer),
            engine=EngineClient(model.facts, self._settings, metrics),
            metrics=metrics,
        )
        self._models[model.key] = _Hosted(served, digests)

    def model_not_loaded(self, model: ModelNotLoaded) -> None:
        """As `connection.Listener` has it."""
        if not self.loaded.is_set():  # a later host says the same, or what nobody asked for
            reason = cast("NotLoadedReason", model.reason)
            self.not_loaded.append(NotLoaded(model.name, model.version, reason, model.description))

    def lane_added(self, lane: LaneAdded, link: socket.socket) -> None:
        """As `connection.Listener` has it."""
        if (before := self.pids.get(lane.lane)) is not None and before != lane.pid:
            self._metrics.processes.retire(before)
        self._metrics.processes.watch(lane.pid, f"lane-{lane.lane}")
        opening = self._open(lane, link, self._opening.get(lane.pid))
        self._opening[lane.pid] = asyncio.create_task(opening)

    def lane_retired(self, lane: LaneRetired) -> None:
        """As `connection.Listener` has it."""
        self._retiring.add(lane.pid)
        opening = list(self._opening.values())  # the lanes that take its place are among these
        self._opening[lane.pid] = asyncio.create_task(self._retire(lane.pid, opening))

    def lane_removed(self, lane: LaneRemoved) -> None:
        """As `connection.Listener` has it."""
        self._metrics.processes.forget(lane.pid)
        self._opening.pop(lane.pid, None)
        if self.pids.get(lane.lane) == lane.pid:
            del self.pids[lane.lane]
        if lane.pid in self._retiring:
            self._retiring.discard(lane.pid)
        else:
            self.on_lane_died()

    def loading_ended(self) -> None:
        """As `connection.Listener` has it."""
        self._change(self._end_loading())

    def model_added(self, model: ModelAdded) -> None:
        """As `connection.Listener` has it."""
        self._change(self._add(model.model, self._connection))

    def model_removed(self, model: ModelRemoved) -> None:
        """As `connection.Listener` has it."""
        self._announced.discard(model.model)
        self._change(self._remove(model.model, model.limit_s, self._connection))

    # Changes of what is there, one after the other.

    def _change(self, change: Coroutine[None, None, None]) -> None:
        self._changing = asyncio.create_task(self._after(self._changing, change))

    async def _after(self, before: "asyncio.Task[None] | None", change: Coroutine[None, None, None]) -> None:
        if before is not None:
            await asyncio.wait([before])
        await change

    async def _end_loading(self) -> None:
        await asyncio.gather(*self._opening.values())
        for key in (
            self._models.keys() - self._announced
        ):  # a change was made, or not made, as the last host ended
            await self._drop(key, 0.0)
        self.loaded.set()

    def _serve(self, model: _Hosted, registry: Registry) -> None:
        if not model.is_announced:
            model.is_announced = True
            announce(model.served, self._settings, self._metrics, is_first=self._is_first)
            registry.add(model.served)

    async def _add(self, key: str, connection: HostConnection | None) -> None:
        """Let a model take calls, once there are links with lanes that have it."""
        try:
            await asyncio.gather(*self._opening.values())
            if self._registry is not None and key in self._announced:
                model = self._models[key]
                await self._registry.prepare(model.served)
                if key in self._announced:  # else the host has ended meanwhile
                    self._serve(model, self._registry)
        finally:  # the host waits for it, and every later change with it
            if connection is not None:
                connection.confirm_change(key)

    async def _remove(self, key: str, limit_s: float, connection: HostConnection | None) -> None:
        try:
            await self._drop(key, limit_s)
        finally:
            if connection is not None:
                connection.confirm_change(key)

    async def _drop(self, key: str, limit_s: float) -> None:
        """Let a model take no calls; those that run have `limit_s` to end."""
        model = self._models.pop(
            key
        )  # at once: a later host may have the version anew before its calls have ended
        served = model.served
        await end_calls(self._registry, served, limit_s)
        if model.is_announced:
            withdraw(served, self._metrics, is_first=self._is_first)
        for lane in self._lanes.values():
            if lane.models.get(key) is served.engine:
                del lane.models[key]

    # Links.

    async def _open(self, added: LaneAdded, sock: socket.socket, before: asyncio.Task[None] | None) -> None:
        """Have a link with a lane's process, once the one that this front had with it before is gone."""
        if before is not None:
            await before
        if (known := self._lanes.get(added.pid)) is not None and known.link is not None:
            await known.link.lost
        clients = {key: self._models[key].served.engine for key in added.models if key in self._models}
        lane = _Lane(next(self._numbers), added.pid, clients)
        patience = patience_s(
            self._settings.watchdog_s, (client.facts.slowest_run_s for client in clients.values())
        )
        lane.link = link = await SocketLink.open(
            sock, lane.receive, lambda: self._lose(lane), asking_interval_s=patience / NUM_LOOKS
        )
        if link.lost.done() or self._is_closed:
            link.close()
            self._request_link(added.pid)
            return
        self._lanes[added.pid] = lane
        self.pids[added.lane] = added.pid
        for key, client in clients.items():
            client.add_lane(lane.number, _ModelLink(link, key), lane.use)

    async def _retire(self, pid: int, before: Collection[asyncio.Task[None]]) -> None:
        """Give a lane nothing more, and close the link with it once nothing of any model is left there."""
        if before:
            await asyncio.wait(before)
        lane = self._lanes.get(pid)
        if lane is None or lane.link is None:
            return
        lane.is_retiring = True
        link, num_left = lane.link, len(lane.models)

        def end_one() -> None:
            nonlocal num_left
            num_left -= 1
            if num_left <= 0:
                link.close()

        for client in list(lane.models.values()):
            client.retire_lane(lane.number, end_one)
        if not lane.models:
            link.close()

    def _lose(self, lane: _Lane) -> None:
        """A lane is gone or was given up."""
        if self._lanes.get(lane.pid) is not lane or self._is_closed:  # it was gone before it was known
            return
        del self._lanes[lane.pid]
        for client in lane.models.values():
            client.remove_lane(lane.number)
        if (opening := self._opening.get(lane.pid)) is not None and opening.done():
            del self._opening[lane.pid]
        if lane.link is not None and lane.link.is_silent and self._connection is not None:
            self._connection.end_lane(lane.pid)
        elif not lane.is_retiring:
            self._request_link(lane.pid)

    def _request_link(self, pid: int) -> None:
        """Where a lane's process lives on, a front that did not read has lost the link alone."""
        if self._connection is not None and not self._is_closed:
            self._connection.request_link(pid)
