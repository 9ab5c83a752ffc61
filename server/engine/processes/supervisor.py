"""The server process's side of the engine's host: start it, watch it, start another one when it dies, end it."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from typing import Protocol

import msgspec
import structlog

from dragoman.common import errors as common_errors
from dragoman.common.errors import DragomanError, OperationError
from dragoman.server import errors as server_errors
from dragoman.server.engine.processes.host_watch import HostWatch
from dragoman.server.engine.processes.messages import (
    AddFront,
    Alive,
    Begin,
    ChangeEnded,
    LoadingEnded,
    LoadVersion,
    Probe,
    ToServer,
    UnloadVersion,
)
from dragoman.server.engine.processes.spawn import SpawnedHost, spawn
from dragoman.server.processes.channel import Channel, packet_pair
from dragoman.server.processes.linux import adopt_orphans, how_it_ended
from dragoman.server.processes.logs import relay

__all__ = ["MAX_FAILED_STARTS", "HostDied", "HostProcess", "Supervisor"]

MAX_FAILED_STARTS = 3
"""Hosts that die so often in a row before one has ever served are not started again: the server ends."""
MAX_FAILED_RESTARTS = 10
"""The same once one has served. Its models can be loaded here, so whatever ends the hosts may be over soon."""
END_S = 1.0
"""Processes that were killed are gone within this time, unless the system holds them."""

_log = structlog.get_logger(__name__)


class HostDied(OperationError):
    """The engine's host has ended before it made a change."""


class HostProcess:
    """One host with its lanes.

    Attributes:
        channel: with the host.
        log: the end of a socket on which host and lanes send what they log.
    """

    def __init__(self, spawned: SpawnedHost, begin: Begin) -> None:
        """Tell a host what to load."""
        self._process = spawned.process
        self.log = spawned.log
        self.channel: Channel[ToServer] = Channel(spawned.control, ToServer)
        with contextlib.suppress(ConnectionError):  # it has died, which is read next
            self.channel.send(begin)

    @property
    def pid(self) -> int:
        """The host's process, which is also the number of the group that its lanes are in."""
        return self._process.pid

    def connect(self, number: int) -> socket.socket:
        """A front's end of a new channel with the host; `number` is of no other front.

        Raises:
            ConnectionError: the host has ended.
        """
        of_front, of_host = packet_pair()
        try:
            self.channel.send(AddFront(number), [of_host.detach()])
        except ConnectionError:
            of_front.close()
            raise
        return of_front

    def end(self) -> str:
        """Kill the host and its lanes and wait until they are gone; returns how the host ended, for people."""
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "it does not end"
        end_s = time.monotonic() + END_S
        with contextlib.suppress(ChildProcessError):  # there is no lane any more
            while time.monotonic() < end_s:
                if os.waitpid(-self.pid, os.WNOHANG) == (0, 0):
                    time.sleep(0.005)
        adopt_orphans(adopt=False)
        return how_it_ended(code)


class Listener(Protocol):
    """Hears what becomes of the host, on the event loop."""

    def host_started(self) -> None:
        """There is a host: `connect` each front. Called for each host but the first."""

    def host_failed(self, error: DragomanError) -> None:
        """There will be no host any more: nothing can be served."""


class Supervisor:
    """Keeps a host running. After `watch` for the event loop that called it."""

    def __init__(self, begin: Begin, module: str, spawned: SpawnedHost | None = None) -> None:
        """Have `module` as hosts, the first of which may have been started already; else start it.

        Call it in the main thread: hosts end with the thread that starts them.

        Raises:
            OperationError: the system refuses another process.
        """
        self._begin = begin
        self._module = module
        self._host = HostProcess(spawned or _spawn(module), begin)
        self._num_failed_starts = 0
        self._has_served = False
        self._is_loaded = False
        self._is_closed = False
        self._failure: DragomanError | None = None  # that the host gave as its reason to end
        self._listener: Listener
        self._replacing: asyncio.Task[None] | None = None
        self._change: asyncio.Future[None] | None = None
        self._signs = HostWatch(self._probe, self._give_up)

    @property
    def pid(self) -> int:
        """The present host's process."""
        return self._host.pid

    def watch(self, listener: Listener) -> None:
        """Hear the host from now on, and have its log written."""
        self._listener = listener
        loop = asyncio.get_running_loop()
        self._host.channel.flush_in(loop)
        loop.add_reader(self._host.channel.fileno(), self._receive)
        loop.add_reader(self._host.log.fileno(), self._relay)
        self._signs.begin()

    def reload(self, versions: list[str]) -> None:
        """Say what was loaded (`name/version`): a host that takes the place of this one loads the same."""
        self._begin = msgspec.structs.replace(self._begin, versions=versions)

    async def change(self, request: LoadVersion | UnloadVersion) -> None:
        """Have the host make a change, one at a time; returns when all fronts have it.

        Raises:
            HostDied: the host has ended meanwhile. The one that takes its place loads what `reload` said.
            DragomanError: why the change is not made.
        """
        if self._replacing is not None and not self._replacing.done():
            await asyncio.shield(self._replacing)
        assert self._change is None, "one change is made at a time"
        self._change = asyncio.get_running_loop().create_future()
        self._signs.begin_change()
        try:
            self._host.channel.send(request)
            await self._change
        except ConnectionError as error:
            raise HostDied("the engine's host has ended") from error
        finally:
            self._signs.end_change()
            self._change = None

    def connect(self, number: int) -> socket.socket:
        """As `HostProcess.connect`, with the present host."""
        return self._host.connect(number)

    async def close(self) -> None:
        """End the host and its lanes, whatever they do."""
        self._is_closed = True
        self._end_change(HostDied("the server is ending"))
        if self._replacing is not None:
            await self._replacing
        if self._host.log.fileno() >= 0:
            await self._end_host()

    def close_at_once(self) -> None:
        """`close` where nothing watches yet."""
        self._host.end()
        self._host.log.close()

    def _receive(self) -> None:
        try:
            while received := self._host.channel.receive():
                message, _ = received
                self._signs.note_sign()
                if isinstance(message, Alive):
                    continue
                if isinstance(message, LoadingEnded):
                    self._num_failed_starts, self._has_served, self._is_loaded = 0, True, True
                elif isinstance(message, ChangeEnded):
                    self._end_change(_error(message.kind, message.message) if message.kind else None)
                else:
                    self._failure = _error(message.kind, message.message)
        except ConnectionError:
            self._end_change(HostDied("the engine's host has ended"))
            if not self._is_closed:
                self._forget()
                self._replacing = asyncio.get_running_loop().create_task(self._replace_or_fail())

    def _end_change(self, error: DragomanError | None) -> None:
        if self._change is None or self._change.done():
            return
        if error is None:
            self._change.set_result(None)
        else:
            self._change.set_exception(error)

    def _relay(self) -> None:
        if not relay(self._host.log):
            asyncio.get_running_loop().remove_reader(self._host.log.fileno())

    def _probe(self) -> None:
        with contextlib.suppress(ConnectionError):  # it has ended, which is read next
            self._host.channel.send(Probe())

    def _give_up(self) -> None:
        _log.warning("engine_host_silent", pid=self._host.pid)
        os.kill(self._host.pid, signal.SIGKILL)  # its channel says the rest

    def _forget(self) -> None:
        self._signs.end()
        loop = asyncio.get_running_loop()
        self._host.channel.flush_in(None)
        loop.remove_reader(self._host.channel.fileno())
        loop.remove_reader(self._host.log.fileno())

    async def _end_host(self) -> str:
        """End the host and its lanes, log what they had to say; returns how the host ended."""
        self._forget()
        how = await asyncio.to_thread(self._host.end)
        relay(self._host.log)
        self._host.log.close()
        return how

    async def _replace_or_fail(self) -> None:
        try:
            await self._replace()
        except Exception as error:  # noqa: BLE001  a fault of ours: without a host the server would wait for ever
            _log.exception("engine_host_not_replaced")
            what = f"the engine's host cannot be replaced: unexpected {type(error).__name__}"
            self._listener.host_failed(OperationError(what))

    async def _replace(self) -> None:
        """The host has ended: lanes end with it. Start another one."""
        pid = self._host.pid
        how = await self._end_host()
        if self._is_closed:
            return
        if self._failure is not None and not self._is_loaded:  # the next one would fail as this one did
            self._listener.host_failed(self._failure)
            return
        if self._failure is not None:  # while it served: the next one may have what this one could not have
            how = f"{how}: {self._failure}"
        self._failure, self._is_loaded = None, False
        _log.error("engine_host_died", pid=pid, how=how)
        self._num_failed_starts += 1
        if self._num_failed_starts == (MAX_FAILED_RESTARTS if self._has_served else MAX_FAILED_STARTS):
            times = f"{self._num_failed_starts} times in a row"
            self._listener.host_failed(OperationError(f"the engine's host died {times}: {how}"))
            return
        try:
            self._host = HostProcess(_spawn(self._module), self._begin)
        except OperationError as error:
            self._listener.host_failed(error)
            return
        self.watch(self._listener)
        self._listener.host_started()


def _spawn(module: str) -> SpawnedHost:
    try:
        return spawn(module)
    except OSError as error:
        raise OperationError(f"cannot start the engine's host: {error.strerror}") from error


def _error(kind: str, message: str) -> DragomanError:
    """The error that another process ran into."""
    for module in (server_errors, common_errors):
        known = getattr(module, kind, None)
        if isinstance(known, type) and issubclass(known, DragomanError):
            return known(message)
    return OperationError(message)
