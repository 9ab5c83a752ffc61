"""Lanes as threads of this process: where there is one core, a GPU, or a bundle without a server."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeAlias

import structlog

from dragoman.server.config import EngineSettings
from dragoman.server.engine.api import Command, EngineFacts, Leave, Report
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.known_lane import LaneUse
from dragoman.server.engine.lane_loop import AddWorker, DropWorker, LaneLoop, ModelFront
from dragoman.server.engine.layout import lane_layout
from dragoman.server.engine.observation import EngineObserver
from dragoman.server.engine.thread_watch import Signs, ThreadWatch
from dragoman.server.engine.warm_up import warm_up
from dragoman.server.engine.watchdog import patience_s
from dragoman.server.engine.worker import LaneWorker, facts_of, make_lane, prepared
from dragoman.server.errors import ResourceUnavailable
from dragoman.server.execution.backend import Backend

__all__ = ["CLOSE_LIMIT_S", "LaneThreads"]

CLOSE_LIMIT_S = 10.0
"""How long `close` waits for the lanes, which end after the step that they compute."""

_CLOSED, _DEAD = "the engine was closed", "the engine's lanes have died"
_ONLY = "model"
"""The key of a model that is the only one."""

_log = structlog.get_logger(__name__)


class LaneThreads:
    """Lanes for any number of models, each a thread. Any number of clients may connect, each for an event loop."""

    def __init__(self, settings: EngineSettings, on_stuck: Callable[[int], object] = lambda _: None) -> None:
        """Lanes without a model; their threads start with the first one.

        `on_stuck` is called, in some thread, with a lane that gives no sign of life. What it had has failed then.
        """
        self._settings = settings
        self._facts: dict[str, EngineFacts] = {}  # by model
        self._connections: list[_Connection] = []
        num_lanes, _ = lane_layout(settings)
        self._ports = [_Port(lane) for lane in range(num_lanes)]
        self._living = set(range(num_lanes))
        self._is_closed = False
        self._lock = threading.Lock()  # of connections and of the living
        self._threads: list[threading.Thread] = []
        self._dropped: dict[str, threading.Semaphore] = {}  # by model, while lanes give it up
        self._on_stuck = on_stuck
        self._watch = ThreadWatch([port.signs for port in self._ports], self._patience_s, self._give_up)

    @classmethod
    def of(cls, backend: Backend, settings: EngineSettings) -> Self:
        """Lanes with one model.

        Raises:
            ResourceUnavailable: there is no memory, or no thread, for them.
        """
        lanes = cls(settings)
        lanes.add_model(_ONLY, backend)
        return lanes

    def add_model(
        self, model: str, backend: Backend, *, load_s: float = 0.0, first_input: Sequence[int] = ()
    ) -> None:
        """Have one more model on all lanes, under a key of its own.

        Each lane has decoded `first_input` before, if there is one (`warm_up.py`).

        Raises:
            ResourceUnavailable: there is no memory, or no thread, for it.
        """
        if self._is_closed:
            raise ResourceUnavailable(_CLOSED)
        backend = prepared(backend, self._settings.prefix_cache_bytes)
        workers = [
            LaneWorker(*make_lane(backend, self._settings), port.send, model=model) for port in self._ports
        ]
        for worker in workers:
            warm_up(worker, (model, None), first_input)
        if not self._threads:
            self._start()
        for port, worker in zip(self._ports, workers, strict=True):
            port.put((model, None), AddWorker(worker))
        self._facts[model] = facts_of(backend, self._settings, load_s=load_s)

    def remove_model(self, model: str, timeout_s: float = CLOSE_LIMIT_S) -> None:
        """Have a model less; what is not over fails with `EngineUnavailable`. Returns when all lanes have given it up.

        Waits at most `timeout_s`. From a thread without an event loop.
        """
        with self._lock:
            gone = [each for each in self._connections if each.key[0] == model]
            self._connections = [each for each in self._connections if each not in gone]
            living = [self._ports[lane] for lane in self._living]
        for connection in gone:
            connection.client.close(f"{model} was unloaded")
        dropped = self._dropped[model] = threading.Semaphore(0)
        for port in living:
            port.put((model, None), DropWorker())
        end_s = time.monotonic() + timeout_s
        for _ in living:
            dropped.acquire(timeout=max(0.0, end_s - time.monotonic()))
        del self._dropped[model], self._facts[model]

    def uses(self) -> list[LaneUse]:
        """For each lane what the clients of several models share of it, on one event loop."""
        return [LaneUse() for _ in self._ports]

    def connect(
        self,
        observer: EngineObserver | None = None,
        *,
        model: str = _ONLY,
        uses: Sequence[LaneUse] | None = None,
    ) -> EngineClient:
        """A client of a model on these lanes; `uses` are those of the other models' clients on its event loop."""
        uses = uses or self.uses()
        client = EngineClient(self._facts[model], self._settings, observer)
        connection = _Connection(model, client)
        with self._lock:
            self._connections.append(connection)
            for lane in sorted(self._living):
                client.add_lane(lane, _Link(connection, self._ports[lane]), uses[lane])
            if self._is_closed or not self._living:
                client.close(_CLOSED if self._is_closed else _DEAD)
        return client

    def begin_close(self) -> None:
        """Have the lanes stop after the step that they compute, and clients fail what is not over. Returns at once."""
        self._watch.close()
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
        self._watch.join(max(0.0, end_s - time.monotonic()))
        running = [thread.name for thread in self._threads if thread.is_alive()]
        if running:
            _log.warning("lanes_still_run", lanes=running, timeout_s=timeout_s)
        return not running

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._run, args=(port,), name=f"lane-{port.lane}", daemon=True)
            for port in self._ports
        ]
        try:
            for thread in self._threads:
                thread.start()
            self._watch.start()
        except RuntimeError as error:  # the system has no thread left for this process
            self.close()
            raise ResourceUnavailable(f"engine.lanes = {len(self._ports)}: {error}; lower it") from error

    def _run(self, port: "_Port") -> None:
        try:
            LaneLoop(port, on_dropped=self._note_dropped).run()
        except BaseException:
            self._remove_lane(port.lane)
            raise
        finally:
            port.signs.is_idle = True

    def _note_dropped(self, model: str) -> None:
        """From a lane's thread, which may be later than `remove_model` waits."""
        if (dropped := self._dropped.get(model)) is not None:
            dropped.release()

    def _patience_s(self) -> float:
        return patience_s(
            self._settings.watchdog_s, [facts.slowest_run_s for facts in list(self._facts.values())]
        )

    def _give_up(self, lane: int) -> None:
        _log.error("lane_stuck", lane=lane, patience_s=round(self._patience_s(), 3))
        self._remove_lane(lane)
        self._on_stuck(lane)

    def _remove_lane(self, lane: int) -> None:
        """Take a dead or stuck lane from its clients. A server ends with its thread; elsewhere others go on."""
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
    """A client of a model, as lanes know it."""

    def __init__(self, model: str, client: EngineClient) -> None:
        self.key: _Key = (model, self)
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


_Key: TypeAlias = ModelFront[_Connection | None]
"""None: what comes from nobody but the lanes' owner."""


class _Port:
    """A lane's end of the connections to it: a queue of commands.

    Attributes:
        signs: of life, of the lane's thread.
    """

    def __init__(self, lane: int) -> None:
        self.lane = lane
        self.signs = Signs()
        self._commands: queue.SimpleQueue[tuple[_Key, Command | AddWorker | DropWorker] | None] = (
            queue.SimpleQueue()
        )

    def put(self, front: _Key, command: Command | AddWorker | DropWorker) -> None:
        """From any thread: hand a command to the lane."""
        self._commands.put((front, command))

    def end(self) -> None:
        """From any thread: have the lane end."""
        self._commands.put(None)

    def receive(self, *, wait: bool) -> Sequence[tuple[_Key, Command | AddWorker | DropWorker]] | None:
        """As `LanePort.receive`."""
        received: list[tuple[_Key, Command | AddWorker | DropWorker]] = []
        self.signs.count += 1
        self.signs.is_idle = wait
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._commands.get(block=wait)
                if item is None:
                    return None
                received.append(item)
                wait = False
        self.signs.is_idle = False
        return received

    def send(self, front: _Key, report: Report) -> None:
        """As `LanePort.send`."""
        _, connection = front
        if connection is not None and not connection.deliver(self.lane, report):
            self.put(front, Leave())


class _Link:
    """A client's end of its connection to a lane."""

    def __init__(self, connection: _Connection, port: _Port) -> None:
        self._connection = connection
        self._port = port

    def send(self, command: Command) -> None:
        """As `LaneLink.send`."""
        self._port.put(self._connection.key, command)
