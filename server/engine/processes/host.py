"""The engine's host: it has all models' weights, forks a process for each lane, and a new one for each that dies.

It has one thread, so that a fork takes a whole process along. It waits for its channels alone: a lane's channel ends
with the lane. It ends when the server's does, or with it (`linux.die_with_parent`); so do its lanes.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import structlog

from dragoman.common.errors import OperationError
from dragoman.server.engine.processes.channel import Channel, packet_pair, stream_pair
from dragoman.server.engine.processes.lane_process import LaneStart, run_lane
from dragoman.server.engine.processes.linux import how_it_ended
from dragoman.server.engine.processes.messages import (
    AddFront,
    Alive,
    FromFront,
    FromLane,
    LaneAdded,
    LaneFailed,
    LaneRemoved,
    LinkLane,
    LoadingEnded,
    ModelLoaded,
    Probe,
    ToFront,
    ToHost,
)
from dragoman.server.errors import ResourceUnavailable

__all__ = ["MAX_FAILED_STARTS", "Host", "LaneStartError", "memory_file"]

MAX_FAILED_STARTS = 5
"""Of a lane, in a row. It will not get any further then: the host ends."""

_FORK_RETRY_S = 0.2

_log = structlog.get_logger(__name__)


class LaneStartError(OperationError):
    """A lane said why it cannot work.

    Attributes:
        kind: the name of the error's class in the lane.
    """

    def __init__(self, told: LaneFailed) -> None:
        super().__init__(told.message)
        self.kind = told.kind


@dataclass(eq=False, slots=True)
class _Lane:
    """The place of a lane, and the process that is in it.

    Attributes:
        models: keys of those that the process has.
        is_ready: whether it waits for work: fronts know of it.
        num_failed_starts: processes in a row that died before they were ready.
    """

    index: int
    models: tuple[str, ...] = ()
    pid: int = 0
    channel: "Channel[FromLane]" = field(init=False)
    is_ready: bool = False
    num_failed_starts: int = 0


class Host:
    """All models, the lanes that have them and the fronts that use those.

    Args:
        server: the channel with the server process.
    """

    def __init__(self, server: "Channel[ToHost]") -> None:
        self._server = server
        self._fronts: dict[int, Channel[FromFront]] = {}
        self._starts: dict[str, LaneStart] = {}  # of all models, by key
        self._lanes: list[_Lane] = []
        self._told: list[
            tuple[ToFront, tuple[int, ...]]
        ] = []  # a new front hears it too, before it gets lanes
        self._is_complete = False
        self._poll = select.epoll()
        self._poll.register(server.fileno(), select.EPOLLIN)

    def tell(self, message: ToFront, descriptors: Sequence[int] = ()) -> None:
        """Send `message` to all fronts, also to those that come later. The descriptors belong to the host now."""
        self._told.append((message, tuple(descriptors)))
        for number in list(self._fronts):
            self._send(number, message, descriptors)

    def add_model(self, model: ModelLoaded, start: LaneStart, *contents: bytes) -> None:
        """Have a model on all lanes, and tell fronts of it, with its manifest and its tokenizer."""
        self._starts[model.key] = start
        self.tell(model, [memory_file(content) for content in contents])

    def serve(self, num_lanes: int) -> NoReturn:
        """Start the lanes, tell fronts when all wait for work, and replace those that die, to the server's end.

        Raises:
            DragomanError: a lane cannot have its rows, or dies again and again before it waits for work.
        """
        self._lanes = [_Lane(index) for index in range(num_lanes)]
        gc.collect()
        gc.freeze()  # a lane that collected garbage would copy every page that it looks at
        for lane in self._lanes:
            self._fork(lane)
        while True:
            if not self._is_complete and all(lane.is_ready for lane in self._lanes):
                self._is_complete = True
                self._server.send(LoadingEnded())
                for number in list(self._fronts):
                    self._send(number, LoadingEnded())
            self._wait()

    def _wait(self) -> None:
        """Wait for any of the channels, and act."""
        for descriptor, event in self._poll.poll():
            # Looked up anew each time: what was done for one event may have closed the descriptor of the next.
            if descriptor == self._server.fileno():
                self._hear_server()
            for lane in self._lanes:
                if lane.channel.fileno() == descriptor:
                    self._hear_lane(lane)
                    break
            for number, channel in self._fronts.items():
                if channel.fileno() == descriptor:
                    self._hear_front(number, event)
                    break

    # Fronts.

    def _hear_server(self) -> None:
        try:
            while received := self._server.receive():
                message, descriptors = received
                if isinstance(message, Probe):
                    self._server.send(Alive())
                for descriptor in descriptors:
                    assert isinstance(message, AddFront)
                    self._add_front(message.front, descriptor)
        except ConnectionError:
            self.end()

    def _add_front(self, number: int, descriptor: int) -> None:
        self._fronts[number] = Channel(socket.socket(fileno=descriptor), FromFront)
        self._poll.register(descriptor, select.EPOLLIN)
        for message, descriptors in self._told:
            self._send(number, message, descriptors)
        for lane in self._lanes:
            if lane.is_ready:
                self._connect(lane, number)
        if self._is_complete:
            self._send(number, LoadingEnded())

    def _hear_front(self, number: int, event: int) -> None:
        if event & select.EPOLLOUT:
            self._flush(number)
        try:
            while (channel := self._fronts.get(number)) is not None and (received := channel.receive()):
                message, _ = received
                if isinstance(message, LinkLane):
                    self._connect_again(message.pid, number)
                else:
                    self._end_lane(message.pid)
        except ConnectionError:
            self._drop_front(number)

    def _send(self, number: int, message: ToFront, descriptors: Sequence[int] = ()) -> None:
        """Send copies of `descriptors`, so that others can have them too. A front that is gone gets nothing."""
        channel = self._fronts.get(number)
        if channel is None:
            return
        try:
            channel.send(message, [os.dup(descriptor) for descriptor in descriptors])
        except ConnectionError:
            self._drop_front(number)
            return
        if channel.has_unsent:
            self._poll.modify(channel.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, number: int) -> None:
        channel = self._fronts[number]
        with contextlib.suppress(ConnectionError):  # read as its end, in its turn
            channel.flush()
        if not channel.has_unsent:
            self._poll.modify(channel.fileno(), select.EPOLLIN)

    def _drop_front(self, number: int) -> None:
        """Forget a front that is gone. Lanes hear of it by their links."""
        channel = self._fronts.pop(number)
        self._poll.unregister(channel.fileno())
        channel.close()

    # Lanes.

    def _fork(self, lane: _Lane) -> None:
        ours, theirs = packet_pair()
        host = os.getpid()
        while True:
            try:
                pid = os.fork()
                break
            except OSError as error:  # no process or no memory left, perhaps not for long
                self._count_failed_start(lane, str(error.strerror))
                time.sleep(_FORK_RETRY_S)
        if not pid:
            ours.close()
            run_lane(self._starts, theirs, self._leave, lane=lane.index, host=host)
        theirs.close()
        lane.pid, lane.is_ready, lane.models = pid, False, tuple(self._starts)
        lane.channel = Channel(ours, FromLane)
        self._poll.register(ours.fileno(), select.EPOLLIN)

    def _leave(self) -> None:
        """In a lane: close and forget what belongs to the host.

        With a copy of a channel here its peer would not see the host's end. What a model takes is free when the lane's
        worker has gone.
        """
        self._poll.close()
        self._server.close()
        for front in self._fronts.values():
            front.close()
        for lane in self._lanes:
            if lane.pid:
                lane.channel.close()
        for _, descriptors in self._told:
            for descriptor in descriptors:
                os.close(descriptor)
        self._starts.clear()

    def _hear_lane(self, lane: _Lane) -> None:
        try:
            while received := lane.channel.receive():
                message, _ = received
                if isinstance(message, LaneFailed):
                    raise LaneStartError(message)
                self._begin_service(lane)
        except ConnectionError:
            self._replace(lane)

    def _begin_service(self, lane: _Lane) -> None:
        lane.is_ready, lane.num_failed_starts = True, 0
        for number in list(self._fronts):
            self._connect(lane, number)

    def _connect(self, lane: _Lane, number: int) -> None:
        """Give a front and a lane the two ends of a link."""
        of_lane, of_front = stream_pair()
        with of_front:
            try:
                lane.channel.send(AddFront(number), [of_lane.detach()])
            except ConnectionError:  # it is dead, which its channel says next
                return
            self._send(number, LaneAdded(lane.index, lane.pid, list(lane.models)), [of_front.fileno()])

    def _connect_again(self, pid: int, number: int) -> None:
        """Give a front another link with a lane's process, if there still is one."""
        for lane in self._lanes:
            if lane.pid == pid and lane.is_ready:
                self._connect(lane, number)

    def _end_lane(self, pid: int) -> None:
        if any(lane.pid == pid for lane in self._lanes):  # else it has ended, and the number may be another's
            _log.warning("lane_silent", pid=pid)
            os.kill(pid, signal.SIGKILL)

    def _replace(self, lane: _Lane) -> None:
        """A lane's process has ended. Say how, and start another one."""
        self._poll.unregister(lane.channel.fileno())
        lane.channel.close()
        # It has closed its channel: whatever it does, it is of no use any more.
        os.kill(lane.pid, signal.SIGKILL)
        how = how_it_ended(os.waitstatus_to_exitcode(os.waitpid(lane.pid, 0)[1]))
        pid, lane.pid = lane.pid, 0
        _log.error("lane_died", lane=lane.index, pid=pid, how=how)
        if lane.is_ready:
            for number in list(self._fronts):
                self._send(number, LaneRemoved(lane.index, pid, how))
        else:
            self._count_failed_start(lane, how)
        self._fork(lane)

    def _count_failed_start(self, lane: _Lane, how: str) -> None:
        lane.num_failed_starts += 1
        if lane.num_failed_starts == MAX_FAILED_STARTS:
            raise ResourceUnavailable(
                f"lane {lane.index} could not start {MAX_FAILED_STARTS} times in a row: {how}; "
                "lower engine.lanes or engine.slots_per_lane"
            )

    def end(self) -> NoReturn:
        """End the lanes and this process."""
        for lane in self._lanes:
            if lane.pid:
                os.kill(lane.pid, signal.SIGKILL)
        os._exit(0)


def memory_file(content: bytes) -> int:
    """A descriptor of memory that holds `content`, for others to read. It has no name in any file system."""
    descriptor = os.memfd_create("bundle")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor
