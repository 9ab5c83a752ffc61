"""Models that the engine's host has loaded, as a front has them; their lanes are processes."""

import asyncio
import hashlib
import itertools
import socket
from collections.abc import Callable
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
from dragoman.server.engine.processes.messages import LaneAdded, LaneRemoved, ModelLoaded, ModelNotLoaded
from dragoman.server.engine.watchdog import NUM_LOOKS, patience_s
from dragoman.server.errors import NotLoadedReason
from dragoman.server.models.discovery import NotLoaded
from dragoman.server.models.registry import Registry, announce_not_loaded
from dragoman.server.models.served_model import ServedModel, announce
from dragoman.server.operations.metrics import Metrics

__all__ = ["HostedModels"]


@dataclass(eq=False, slots=True)
class _Hosted:
    """A model, and the digests of the manifest and the tokenizer that the host sent."""

    served: ServedModel
    digests: tuple[bytes, ...]


@dataclass(eq=False, slots=True)
class _Lane:
    """A lane's process, as this front has it.

    Attributes:
        number: by which clients know it; no other process has it, though it may take this one's place.
        models: that it has, by key.
        use: of its rows by all models.
        link: None until it is open.
    """

    number: int
    pid: int
    models: dict[str, EngineClient]
    use: LaneUse = field(default_factory=LaneUse)
    link: SocketLink | None = None

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
        on_lane_died: called when a lane's process has ended without being told to.
        loaded: done when the host has told of all models, and links with all lanes are there.
        pids: the lanes' processes, by the lane's number among the host's.
    """

    def __init__(
        self,
        settings: EngineSettings,
        metrics: Metrics,
        on_failure: Callable[[OperationError], object] = lambda _: None,
    ) -> None:
        """`on_failure` is called when a host has other models than the one before it had. Call on the event loop."""
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
        self._numbers = itertools.count()
        self._connection: HostConnection | None = None
        self._ending: asyncio.Task[None] | None = None
        self._is_closed = False

    def connect(self, sock: socket.socket) -> None:
        """Hear a host: the first one, or one that takes another's place; `sock` is of `Supervisor.connect`."""
        if self._connection is not None:
            self._connection.close()
        self._connection = HostConnection(sock, self)

    def registry(self, *, is_first: bool = True) -> Registry:
        """The models by name, with what is not served; known to the metrics. The first front logs them."""
        if is_first:
            announce_not_loaded(self.not_loaded, self._metrics)
        for model in self._models.values():
            announce(model.served, self._settings, self._metrics, is_first=is_first)
        return Registry([model.served for model in self._models.values()], self.not_loaded)

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
        self._metrics.processes.watch(lane.pid, f"lane-{lane.lane}")
        before = self._opening.get(lane.pid)
        self._opening[lane.pid] = asyncio.create_task(self._open(lane, link, before))

    def lane_removed(self, lane: LaneRemoved) -> None:
        """As `connection.Listener` has it."""
        self._metrics.processes.forget(lane.pid)
        self._opening.pop(lane.pid, None)
        if self.pids.get(lane.lane) == lane.pid:
            del self.pids[lane.lane]
        self.on_lane_died()

    def loading_ended(self) -> None:
        """As `connection.Listener` has it."""
        self._ending = asyncio.create_task(self._end_loading())

    async def _end_loading(self) -> None:
        await asyncio.gather(*self._opening.values())
        self.loaded.set()

    # Links.

    async def _open(self, told: LaneAdded, sock: socket.socket, before: asyncio.Task[None] | None) -> None:
        """Have a link with a lane's process, once the one that this front had with it before is gone."""
        if before is not None:
            await before
        if (known := self._lanes.get(told.pid)) is not None and known.link is not None:
            await known.link.lost
        clients = {key: self._models[key].served.engine for key in told.models if key in self._models}
        lane = _Lane(next(self._numbers), told.pid, clients)
        patience = patience_s(
            self._settings.watchdog_s, (client.facts.slowest_run_s for client in clients.values())
        )
        lane.link = link = await SocketLink.open(
            sock, lane.receive, lambda: self._lose(lane), asking_interval_s=patience / NUM_LOOKS
        )
        if link.lost.done() or self._is_closed:
            link.close()
            self._ask_again(told.pid)
            return
        self._lanes[told.pid] = lane
        self.pids[told.lane] = told.pid
        for key, client in clients.items():
            client.add_lane(lane.number, _ModelLink(link, key), lane.use)

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
        else:
            self._ask_again(lane.pid)

    def _ask_again(self, pid: int) -> None:
        """Where a lane's process lives on, a front that did not read has lost the link alone."""
        if self._connection is not None and not self._is_closed:
            self._connection.link_again(pid)
