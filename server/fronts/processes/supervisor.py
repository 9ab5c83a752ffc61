"""The server process's side of its further fronts: start them, replace those that die, drain and end them."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from dragoman.common.errors import OperationError
from dragoman.server.config import ServerSettings
from dragoman.server.fronts.grpc.front import INFERENCE_METHODS
from dragoman.server.fronts.processes.changes import make_change
from dragoman.server.fronts.processes.clients import ClientMemory, OtherFronts
from dragoman.server.fronts.processes.messages import (
    AskStatistics,
    Begin,
    CannotServe,
    Drain,
    Listen,
    MakeChange,
    Reload,
    SetFailing,
    ShowCatalog,
    ToServer,
    UseEngine,
)
from dragoman.server.fronts.processes.statistics import answer_statistics
from dragoman.server.models.catalog import Catalog
from dragoman.server.models.changes import ForbiddenChanges, ModelChanges
from dragoman.server.operations.metrics import Metrics
from dragoman.server.operations.shared_values import HEARTBEAT, ValueMemory
from dragoman.server.operations.statistics import read_statistics
from dragoman.server.processes.channel import Channel, packet_pair
from dragoman.server.processes.linux import how_it_ended
from dragoman.server.processes.logs import relay
from dragoman.server.processes.memory_files import memory_file
from dragoman.server.processes.silence import Silence
from dragoman.server.processes.start import start_process

__all__ = ["END_S", "FrontProcess", "Fronts"]

START_S = 20.0
"""The server is ready without a front that takes longer."""
DRAIN_MARGIN_S = 3.0
"""How much longer than its calls a front may take to end. What gRPC needs then (`draining.STOP_LIMIT_S`), and less
than the server itself has."""
END_S = 1.0
"""A process that was killed is gone within this time, unless the system holds it."""
MIN_DELAY_S, MAX_DELAY_S = 0.1, 30.0
"""Before a process takes the place of one that has died; doubled as long as none comes to serve."""

WATCH_INTERVAL_S = 5.0
MAX_SILENT_LOOKS = 12
"""A front whose event loop gives no sign of life at so many looks in a row, for 60 s, hangs: it is killed."""

_PACKAGE = __name__.rpartition(".")[0]

_log = structlog.get_logger(__name__)


class FrontProcess:
    """One front process. Start it in the main thread: it ends with the thread that started it.

    Attributes:
        pid: of the process.
        channel: with the process.
        log: the end of a socket on which the process sends what it logs.
        values: what the process counts.
    """

    def __init__(self, number: int, begin: Begin, module: str, clients: int) -> None:
        """Run `main` of `module` as front `number`. `clients` is the descriptor of `ClientMemory`.

        Raises:
            OperationError: the system refuses another process.
        """
        self.values = ValueMemory(f"front-{number}")
        ours, theirs = packet_pair()
        self.log, log_of_front = packet_pair()
        self.log.setblocking(False)
        descriptors = (theirs.fileno(), log_of_front.fileno(), self.values.fd, clients)
        with theirs, log_of_front:
            try:
                self._process = start_process(_PACKAGE, module, descriptors, arguments=[str(number)])
            except OSError as error:
                ours.close()
                self.log.close()
                self.values.close()
                raise OperationError(f"cannot start another front: {error.strerror}") from error
        self.pid = self._process.pid
        self.channel: Channel[ToServer] = Channel(ours, ToServer)
        with contextlib.suppress(ConnectionError):  # it has ended, which its channel says next
            self.channel.send(begin)

    def end(self) -> str:
        """Kill the process and wait until it is gone; returns how it ended, for people."""
        self.channel.close()
        self._process.kill()  # does nothing to one that was waited for
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "it does not end"
        return how_it_ended(code)


class _ManagedFront:
    """A further front of the server: its number stays, its process may be replaced.

    Attributes:
        number: from 1, in the log's `front=N` and in the series' "front-N".
        process: the present one, or None between two.
        is_serving: set while the process answers calls.
        is_over: set when the process is gone and there will be no other.
        delay_s: before the next process is started after a death.
        reviving: the timer of that start, while one is due.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: FrontProcess | None = None
        self.is_serving = asyncio.Event()
        self.is_over = asyncio.Event()
        self.delay_s = MIN_DELAY_S
        self.reviving: asyncio.TimerHandle | None = None
        self.silence = Silence()

    def is_silent(self) -> bool:
        """Look for a sign of life; returns whether there has been none for too long."""
        if self.process is None:
            return False
        heartbeat = self.process.values.read().get(HEARTBEAT, 0.0)
        return self.silence.look(heartbeat) >= MAX_SILENT_LOOKS


class Fronts:
    """Keeps `num_fronts` front processes running beside this one, from `start` to `close`. On one event loop.

    Attributes:
        on_death: called when a process has died.
        changes: makes the changes of what is served that callers of the fronts ask for.
    """

    def __init__(
        self,
        settings: ServerSettings,
        num_fronts: int,
        metrics: Metrics,
        connect_engine: Callable[[], socket.socket],
        module: str = f"{_PACKAGE}.hosted",
    ) -> None:
        """Prepare, without a process.

        Args:
            settings: with each front's share of what fronts divide.
            num_fronts: beside this process.
            metrics: of the server.
            connect_engine: returns a front's end of a new channel with the engine's host.
            module: what a process runs.
        """
        self.changes: ModelChanges = ForbiddenChanges()
        self._begin = Begin(settings.model_dump_json().encode(), num_fronts + 1)
        self._listen = settings.server
        self._metrics = metrics
        self._connect_engine = connect_engine
        self._module = module
        self._clients = ClientMemory(num_fronts + 1)
        self._fronts = [_ManagedFront(number) for number in range(1, num_fronts + 1)]
        self._port: int | None = None
        self._is_draining = False
        self._is_failing = False
        self.on_death: Callable[[], object] = lambda: None
        self._watching: asyncio.Task[None] | None = None
        self._reading: set[asyncio.Task[None]] = set()
        self._catalog: bytes | None = None
        self._making: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start the processes. They come to serve once there is an engine, and `listen` was called.

        Raises:
            OperationError: the system refuses another process.
        """
        for front in self._fronts:
            self._start(front)
        self._watching = asyncio.create_task(self._watch())

    async def listen(self, port: int, stop: asyncio.Event | None = None) -> None:
        """Have all fronts answer calls on `port`; returns when they do, one takes too long, or `stop` is set."""
        self._port = port
        for front in self._fronts:
            self._send(front, Listen(port))
        serving = asyncio.create_task(self._wait_until_serving())
        stopping = asyncio.create_task((stop or asyncio.Event()).wait())
        await asyncio.wait({serving, stopping}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        is_late = not (serving.done() or stopping.done())
        serving.cancel()
        stopping.cancel()
        if is_late:
            missing = [front.number for front in self._fronts if not front.is_serving.is_set()]
            _log.warning("fronts_missing", fronts=missing, seconds=START_S)

    async def _wait_until_serving(self) -> bool:
        for front in self._fronts:
            await front.is_serving.wait()
        return True

    def show(self, catalog: Catalog) -> None:
        """Have all fronts go by this catalog, also those that start later."""
        self._catalog = msgspec.msgpack.encode(catalog)
        for front in self._fronts:
            self._show(front)

    def use_engine(self) -> None:
        """There is another engine's host: connect all fronts with it."""
        for front in self._fronts:
            self._connect(front)

    def use(self, settings: ServerSettings) -> None:
        """Have all fronts go by `settings`, which have each one's share, and read certificates and tokens again."""
        encoded = settings.model_dump_json().encode()
        self._begin = Begin(encoded, self._begin.num_fronts)
        self._listen = settings.server
        for front in self._fronts:
            self._send(front, Reload(encoded))

    def set_failing(self, *, is_failing: bool) -> None:
        """Have all fronts say that they are ready, or not."""
        self._is_failing = is_failing
        for front in self._fronts:
            self._send(front, SetFailing(is_failing))

    def clients_of(self, number: int) -> OtherFronts:
        """What clients do in all fronts but `number`, for that one."""
        return OtherFronts(self._clients.fd, number, self._clients.num_fronts)

    def pids(self) -> list[int]:
        """The processes that there are."""
        return [front.process.pid for front in self._fronts if front.process is not None]

    def begin_drain(self) -> None:
        """Have all fronts drain. From now on none is replaced."""
        self._is_draining = True
        if self._watching is not None:
            self._watching.cancel()
        for front in self._fronts:
            if front.reviving is not None:
                front.reviving.cancel()
            if front.process is None:
                front.is_over.set()
            else:
                self._send(front, Drain())

    async def drain(self) -> None:
        """Wait until all fronts have drained. One that outlasts its time is killed."""
        self.begin_drain()
        limit_s = self._listen.drain_delay_s + self._listen.drain_timeout_s + DRAIN_MARGIN_S
        ending = [asyncio.create_task(front.is_over.wait()) for front in self._fronts]
        _, late = await asyncio.wait(ending, timeout=limit_s)
        for task in late:
            task.cancel()
        for front in self._fronts:
            if front.process is not None:
                _log.warning("front_killed", front=front.number, pid=front.process.pid)
        await self.close()

    async def close(self) -> None:
        """End what is left of the fronts, at once."""
        self.begin_drain()
        for front in self._fronts:
            if front.process is not None:
                self._forget(front, front.process)
        self._clients.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for front in self._fronts:
                if front.is_silent() and front.process is not None:
                    _log.warning("front_silent", front=front.number, pid=front.process.pid)
                    os.kill(front.process.pid, signal.SIGKILL)  # its channel says the rest
                    front.silence = Silence()  # a process that takes a while to end is not reported again

    def _start(self, front: _ManagedFront) -> None:
        process = front.process = FrontProcess(front.number, self._begin, self._module, self._clients.fd)
        front.silence = Silence()
        self._metrics.page.add(process.values)
        self._metrics.processes.watch(process.pid, f"front-{front.number}")
        loop = asyncio.get_running_loop()
        process.channel.flush_in(loop)
        loop.add_reader(process.channel.fileno(), self._receive, front, process)
        loop.add_reader(process.log.fileno(), self._relay, front, process)
        self._connect(front)
        if self._is_failing:
            self._send(front, SetFailing(is_failing=True))
        self._show(front)
        if self._port is not None:
            self._send(front, Listen(self._port))

    def _connect(self, front: _ManagedFront) -> None:
        with contextlib.suppress(ConnectionError):  # the host has ended: `use_engine` connects the next one
            self._send(front, UseEngine(), [self._connect_engine().detach()])

    async def _show_statistics(self, front: _ManagedFront, process: FrontProcess) -> None:
        statistics = await answer_statistics(partial(read_statistics, self._metrics, INFERENCE_METHODS))
        if front.process is process:  # else its callers are gone with it
            self._send(front, statistics)

    def _show(self, front: _ManagedFront) -> None:
        if self._catalog is not None:
            self._send(front, ShowCatalog(), [memory_file(self._catalog)])

    async def _make_change(self, front: _ManagedFront, process: FrontProcess, request: MakeChange) -> None:
        made = await make_change(self.changes, request)
        if front.process is process:  # else its callers are gone with it
            self._send(front, made)

    def _send(
        self, front: _ManagedFront, message: object, descriptors: "tuple[int, ...] | list[int]" = ()
    ) -> None:
        if front.process is None:
            for descriptor in descriptors:
                os.close(descriptor)
            return
        with contextlib.suppress(ConnectionError):  # it has ended, which its channel says next
            front.process.channel.send(message, descriptors)  # type: ignore[arg-type]

    def _receive(self, front: _ManagedFront, process: FrontProcess) -> None:
        try:
            while received := process.channel.receive():
                message, _ = received
                if isinstance(message, CannotServe):
                    _log.error("front_cannot_serve", front=front.number, error=message.message)
                elif isinstance(message, AskStatistics):
                    reading = asyncio.create_task(self._show_statistics(front, process))
                    self._reading.add(reading)
                    reading.add_done_callback(self._reading.discard)
                elif isinstance(message, MakeChange):
                    making = asyncio.create_task(self._make_change(front, process, message))
                    self._making.add(making)
                    making.add_done_callback(self._making.discard)
                else:
                    front.delay_s = MIN_DELAY_S
                    front.is_serving.set()
        except ConnectionError:
            pid, how = process.pid, self._forget(front, process)
            if not self._is_draining or how != "exit code 0":
                _log.error("front_died", front=front.number, pid=pid, how=how)
            if not self._is_draining:
                self.on_death()
                self._replace(front)

    def _relay(self, front: _ManagedFront, process: FrontProcess) -> None:
        if not relay(process.log, front=front.number):
            asyncio.get_running_loop().remove_reader(process.log.fileno())

    def _forget(self, front: _ManagedFront, process: FrontProcess) -> str:
        """A process has ended, or has to; returns how. What it has counted stays."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(process.channel.fileno())
        loop.remove_reader(process.log.fileno())
        how = process.end()
        relay(process.log, front=front.number)
        process.log.close()
        self._metrics.processes.forget(process.pid)
        self._metrics.page.retire(process.values)
        self._clients.forget_calls(front.number)
        front.process = None
        front.is_serving.clear()
        if self._is_draining:
            front.is_over.set()
        return how

    def _replace(self, front: _ManagedFront) -> None:
        front.reviving = asyncio.get_running_loop().call_later(front.delay_s, self._revive, front)
        front.delay_s = min(2 * front.delay_s, MAX_DELAY_S)

    def _revive(self, front: _ManagedFront) -> None:
        front.reviving = None
        try:
            self._start(front)
        except OperationError as error:
            _log.error("front_cannot_serve", front=front.number, error=str(error))
            self._replace(front)
