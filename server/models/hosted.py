"""Models that the engine's host has loaded, as a front has them; their lanes are processes."""

import asyncio
import hashlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from dragoman.common.errors import OperationError
from dragoman.server.bundle.manifest import Manifest
from dragoman.server.bundle.reader import make_tokenizer
from dragoman.server.config import EngineSettings
from dragoman.server.engine.api import Report
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.processes.connection import HostConnection
from dragoman.server.engine.processes.link import SocketLink
from dragoman.server.engine.processes.messages import LaneAdded, LaneRemoved, ModelLoaded, ModelNotLoaded
from dragoman.server.errors import NotLoadedReason
from dragoman.server.models.discovery import NotLoaded
from dragoman.server.models.registry import Registry, announce_not_loaded
from dragoman.server.models.served_model import ServedModel, announce
from dragoman.server.operations.metrics import Metrics

__all__ = ["HostedModels"]


@dataclass(eq=False, slots=True)
class _Hosted:
    """A model, and the links with its lanes.

    Attributes:
        digests: of the manifest and the tokenizer that the host sent.
        opening: the task that last had to do with a lane's place.
    """

    served: ServedModel
    digests: tuple[bytes, ...]
    links: dict[int, SocketLink] = field(default_factory=dict)
    opening: dict[int, asyncio.Task[None]] = field(default_factory=dict)


class HostedModels:
    """The models of one front: on its event loop, from its connection with the host.

    Attributes:
        not_loaded: what lies in the models folder and is not served.
        loaded: done when the host has told of all models, and links with all lanes are there.
        pids: the lanes' processes, by model and lane.
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
        self.pids: dict[tuple[str, int], int] = {}
        self._settings = settings
        self._metrics = metrics
        self._on_failure = on_failure
        self._models: dict[str, _Hosted] = {}
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
            for link in list(model.links.values()):
                link.close()

    # What the host says.

    def model_loaded(self, model: ModelLoaded, manifest: bytes, tokenizer: bytes) -> None:
        """As `connection.Listener` has it."""
        digests = tuple(hashlib.sha256(content).digest() for content in (manifest, tokenizer))
        if (known := self._models.get(model.name)) is not None:
            if digests != known.digests or model.version != known.served.version:
                self._on_failure(
                    OperationError(f"{model.name}/{model.version} is not what was served before")
                )
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
        self._models[model.name] = _Hosted(served, digests)

    def model_not_loaded(self, model: ModelNotLoaded) -> None:
        """As `connection.Listener` has it."""
        if not self.loaded.is_set():  # a later host says the same, or what nobody asked for
            reason = cast("NotLoadedReason", model.reason)
            self.not_loaded.append(NotLoaded(model.name, model.version, reason, model.description))

    def lane_added(self, lane: LaneAdded, link: socket.socket) -> None:
        """As `connection.Listener` has it."""
        model = self._models[lane.model]
        self._metrics.processes.watch(lane.pid, f"lane-{lane.lane}", lane.model)
        before = model.opening.get(lane.lane)
        model.opening[lane.lane] = asyncio.create_task(self._open(model, lane, link, before))

    def lane_removed(self, lane: LaneRemoved) -> None:
        """As `connection.Listener` has it."""
        self._metrics.processes.forget(lane.pid)
        if self.pids.get((lane.model, lane.lane)) == lane.pid:
            del self.pids[lane.model, lane.lane]

    def loading_ended(self) -> None:
        """As `connection.Listener` has it."""
        self._ending = asyncio.create_task(self._end_loading())

    async def _end_loading(self) -> None:
        await asyncio.gather(*(task for model in self._models.values() for task in model.opening.values()))
        self.loaded.set()

    async def _open(
        self, model: _Hosted, lane: LaneAdded, sock: socket.socket, before: asyncio.Task[None] | None
    ) -> None:
        """Have a link with a lane, once it is known that whoever had its place is gone."""
        if before is not None:
            await before
        if (link := model.links.get(lane.lane)) is not None:
            await link.lost
        client = model.served.engine

        def receive(report: Report) -> None:
            client.receive(lane.lane, report)

        link = await SocketLink.open(sock, receive, lambda: self._lose(model, lane))
        if link.lost.done():
            return
        model.links[lane.lane] = link
        self.pids[lane.model, lane.lane] = lane.pid
        client.add_lane(lane.lane, link)

    def _lose(self, model: _Hosted, lane: LaneAdded) -> None:
        """A lane is gone or was given up."""
        link = model.links.pop(lane.lane, None)
        if link is None or self._is_closed:  # it was gone before there was a link
            return
        model.served.engine.remove_lane(lane.lane)
        if self._connection is None:
            return
        if link.is_silent:
            self._connection.end_lane(lane.pid)
        else:  # where the process lives on, a front that does not read has lost the link alone
            self._connection.link_again(lane.pid)
