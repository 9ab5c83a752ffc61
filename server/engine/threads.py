"""Lanes as threads of this process: where there is one core, a GPU, or a bundle without a server."""

import contextlib
import queue
import threading
import time
from collections.abc import Sequence

import structlog

from dragoman.server.config import EngineSettings
from dragoman.server.decoding.joining import UnknownDecoderError
from dragoman.server.engine.api import Command, EngineFacts, Leave, Report
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.layout import engine_facts
from dragoman.server.engine.observation import EngineObserver
from dragoman.server.engine.worker import LaneWorker, make_lane
from dragoman.server.errors import ResourceUnavailable
from dragoman.server.execution.backend import Backend

__all__ = ["CLOSE_LIMIT_S", "LaneThreads"]

CLOSE_LIMIT_S = 10.0
"""How long `close` waits for the lanes, which end after the step that they compute."""

_CLOSED, _DEAD = "the engine was closed", "the engine's lanes have died"

_log = structlog.get_logger(__name__)


class LaneThreads:
    """A backend's lanes, each a thread. Any number of clients may connect, each for an event loop.

    Attributes:
        facts: what clients are told.
    """

    def __init__(self, backend: Backend, settings: EngineSettings, *, load_s: float = 0.0) -> None:
        """Start the lanes.

        Raises:
            ResourceUnavailable: there is no memory, or no thread, for them.
        """
        backend = backend.with_prefix_cache(settings.prefix_cache_bytes)
        with contextlib.suppress(UnknownDecoderError):  # callers are told who ask for what needs it
            # 2 us a token, now rather than in a step. It takes less than the trial of the graphs.
            _ = backend.vocabulary
        self._settings = settings
        self.facts: EngineFacts = engine_facts(
            backend.bundle.manifest,
            settings,
            kernels=backend.kernels,
            max_prefix_blocks=backend.prefix_cache.max_blocks,
            load_s=load_s,
        )
        self._connections: list[_Connection] = []
        self._ports = [_Port(lane) for lane in range(self.facts.num_lanes)]
        self._living = set(range(self.facts.num_lanes))
        self._is_closed = False
        self._lock = threading.Lock()  # of connections and of the living
        workers = [LaneWorker(*make_lane(backend, settings), port) for port in self._ports]
        self._threads = [
            threading.Thread(target=self._run, args=(port, worker), name=f"lane-{port.lane}", daemon=True)
            for port, worker in zip(self._ports, workers, strict=True)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:  # the system has no thread left for this process
            self.close()
            raise ResourceUnavailable(f"engine.lanes = {self.facts.num_lanes}: {error}; lower it") from error

    def connect(self, observer: EngineObserver | None = None) -> EngineClient:
        """A client of these lanes."""
        client = EngineClient(self.facts, self._settings, observer)
        connection = _Connection(client)
        with self._lock:
            self._connections.append(connection)
            for lane in sorted(self._living):
                client.add_lane(lane, _Link(connection, self._ports[lane]))
            if self._is_closed or not self._living:
                client.close(_CLOSED if self._is_closed else _DEAD)
        return client

    def begin_close(self) -> None:
        """Have the lanes stop after the step that they compute, and clients fail what is not over. Returns at once."""
        for port in self._ports:
            port.end()
        with self._lock:
            self._is_closed = True
            connections = list(self._connections)
        for connection in connections:
            connection.client.close(_CLOSED)

    def close(self, timeout_s: float = CLOSE_LIMIT_S) -> bool:
        """Stop the lanes; what is not over fails with `EngineUnavailable`.

        Waits for the lanes at most `timeout_s`. Returns whether they have ended; where one has not, it still
        uses the graphs.
        """
        self.begin_close()
        end_s = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join(max(0.0, end_s - time.monotonic()))
        running = [thread.name for thread in self._threads if thread.is_alive()]
        if running:
            _log.warning("lanes_still_run", lanes=running, timeout_s=timeout_s)
        return not running

    def _run(self, port: "_Port", worker: "LaneWorker[_Connection]") -> None:
        try:
            worker.run()
        except BaseException:
            self._bury(port.lane)
            raise

    def _bury(self, lane: int) -> None:
        """A lane died. A server's process ends with its thread; elsewhere the other lanes go on."""
        with self._lock:
            self._living.discard(lane)
            is_last = not self._living
            connections = list(self._connections)
        for connection in connections:
            if is_last:
                connection.client.close(_DEAD)
            else:
                connection.lose(lane)


class _Connection:
    """A client, as lanes know it."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client

    def deliver(self, lane: int, report: Report) -> bool:
        """From a lane's thread: hand over a report; returns False where the client's event loop is closed."""
        loop = self.client.loop
        assert loop is not None, "it has submitted something"
        try:
            loop.call_soon_threadsafe(self.client.receive, lane, report)
        except RuntimeError:
            return False
        return True

    def lose(self, lane: int) -> None:
        """From any thread: the lane has died."""
        loop = self.client.loop
        if loop is None:  # it has submitted nothing, so nobody is at it
            self.client.remove_lane(lane)
            return
        with contextlib.suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(self.client.remove_lane, lane)


class _Port:
    """A lane's end of the connections to it: a queue of commands."""

    def __init__(self, lane: int) -> None:
        self.lane = lane
        self._commands: queue.SimpleQueue[tuple[_Connection, Command] | None] = queue.SimpleQueue()

    def put(self, connection: _Connection, command: Command) -> None:
        """From any thread: hand a command to the lane."""
        self._commands.put((connection, command))

    def end(self) -> None:
        """From any thread: have the lane end."""
        self._commands.put(None)

    def receive(self, *, wait: bool) -> Sequence[tuple[_Connection, Command]] | None:
        """As `LanePort.receive`."""
        received: list[tuple[_Connection, Command]] = []
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._commands.get(block=wait)
                if item is None:
                    return None
                received.append(item)
                wait = False
        return received

    def send(self, front: _Connection, report: Report) -> None:
        """As `LanePort.send`."""
        if not front.deliver(self.lane, report):
            self.put(front, Leave())


class _Link:
    """A client's end of its connection to a lane."""

    def __init__(self, connection: _Connection, port: _Port) -> None:
        self._connection = connection
        self._port = port

    def send(self, command: Command) -> None:
        """As `LaneLink.send`."""
        self._port.put(self._connection, command)
