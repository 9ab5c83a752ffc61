"""A host of lanes that answer with their input, in the care of a supervisor, and fronts that keep what they receive."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

from tests.integration.process_tools import members
from tests.integration.serving import PATIENCE_S, eventually

from dragoman.common.errors import DragomanError
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.api import Finished, Report, Request, Submit
from dragoman.server.engine.processes.connection import HostConnection
from dragoman.server.engine.processes.link import SocketLink
from dragoman.server.engine.processes.messages import (
    Begin,
    LaneAdded,
    LaneRemoved,
    LaneRetired,
    ModelAdded,
    ModelLoaded,
    ModelNotLoaded,
    ModelRemoved,
)
from dragoman.server.engine.processes.supervisor import Supervisor

__all__ = ["MODULE", "PARAMETERS", "Engine", "Front", "begin", "engine"]

MODULE = "tests.integration.echo_host"
PARAMETERS = DecodingParameters(max_tokens=8)


def begin(num_lanes: int = 2, **options: Any) -> Begin:
    return Begin(b"/models", json.dumps({"num_lanes": num_lanes, **options}).encode())


class Front:
    """A front that keeps what it receives."""

    def __init__(self, asking_interval_s: float = 5.0) -> None:
        self.models: dict[str, tuple[bytes, bytes]] = {}
        self.not_loaded: list[str] = []
        self.pids: dict[int, int] = {}
        self.links: dict[int, SocketLink] = {}
        self.links_of: dict[int, SocketLink] = {}
        self.removed: list[LaneRemoved] = []
        self.retired: list[int] = []
        self.added: list[str] = []
        self.removed_models: list[str] = []
        self.keeps_links = self.is_deaf = False
        self._changing: list[asyncio.Task[None]] = []
        self.answers: dict[int, tuple[int, ...]] = {}
        self.num_lost_links = 0
        self.loaded = asyncio.Event()
        self.connection: HostConnection
        self._asking_interval_s = asking_interval_s
        self._opening: set[asyncio.Task[None]] = set()

    def connect(self, sock: socket.socket) -> None:
        self.connection = HostConnection(sock, self)

    def model_loaded(self, model: ModelLoaded, manifest: bytes, tokenizer: bytes) -> None:
        self.models[model.key] = (manifest, tokenizer)

    def model_not_loaded(self, model: ModelNotLoaded) -> None:
        self.not_loaded.append(model.name)

    def lane_added(self, lane: LaneAdded, link: socket.socket) -> None:
        self._opening.add(asyncio.create_task(self._open(lane, link)))

    async def _open(self, lane: LaneAdded, sock: socket.socket) -> None:
        key = lane.lane
        link = await SocketLink.open(
            sock,
            self._receive,
            lambda: self._lose(key, lane.pid),
            asking_interval_s=self._asking_interval_s,
        )
        self.links[key], self.pids[key] = link, lane.pid
        self.links_of[lane.pid] = link

    def _lose(self, key: int, pid: int) -> None:
        self.num_lost_links += 1
        if self.links_of[pid].is_silent:
            self.connection.end_lane(pid)

    def lane_removed(self, lane: LaneRemoved) -> None:
        self.removed.append(lane)

    def lane_retired(self, lane: LaneRetired) -> None:
        self.retired.append(lane.pid)
        if not self.keeps_links:
            self._changing.append(asyncio.create_task(self._close(lane.pid)))

    async def _close(self, pid: int) -> None:
        await asyncio.gather(*self._opening)
        self.links_of[pid].close()

    def model_added(self, model: ModelAdded) -> None:
        self.added.append(model.model)
        self._changing.append(asyncio.create_task(self._confirm(model.model)))

    def model_removed(self, model: ModelRemoved) -> None:
        self.removed_models.append(model.model)
        self._changing.append(asyncio.create_task(self._confirm(model.model)))

    async def _confirm(self, model: str) -> None:
        await asyncio.gather(*self._opening)
        if not self.is_deaf:
            self.connection.confirm_change(model)

    def loading_ended(self) -> None:
        self.loaded.set()

    def _receive(self, _model: str, report: Report) -> None:
        for event in report.events:
            if isinstance(event, Finished):
                self.answers[event.id] = event.hypotheses[0].token_ids

    def ask(self, number: int, *input_ids: int, lane: int = 0, model: str = "echo/1") -> None:
        self.links[lane].send(model, Submit([Request(number, 1, input_ids, PARAMETERS)]))

    async def answer(
        self, number: int, *input_ids: int, lane: int = 0, model: str = "echo/1"
    ) -> tuple[int, ...]:
        self.ask(number, *input_ids, lane=lane, model=model)
        await eventually(lambda: number in self.answers)
        return self.answers[number]


class Engine:
    """A host in the care of a supervisor, and fronts."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.fronts: list[Front] = []
        self.num_started = 0
        self.failures: list[DragomanError] = []

    def host_started(self) -> None:
        self.num_started += 1
        for number, front in enumerate(self.fronts):
            with contextlib.suppress(ConnectionError):  # it has ended already
                front.connect(self.supervisor.connect(number))

    def host_failed(self, error: DragomanError) -> None:
        self.failures.append(error)

    async def front(self, num_lanes: int = 2, **options: Any) -> Front:
        front = Front(**options)
        front.connect(self.supervisor.connect(len(self.fronts)))
        self.fronts.append(front)
        await asyncio.wait_for(front.loaded.wait(), PATIENCE_S)
        await eventually(lambda: len(front.links) == num_lanes)
        return front


@contextlib.asynccontextmanager
async def engine(start: Begin) -> AsyncIterator[Engine]:
    supervisor = Supervisor(start, MODULE)
    held = Engine(supervisor)
    supervisor.watch(held)
    try:
        yield held
    finally:
        pid = supervisor.pid
        await supervisor.close()
        assert members(pid) == []
