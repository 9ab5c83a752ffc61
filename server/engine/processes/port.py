"""A lane's end: commands from all fronts come in, reports go out, for all models. Nothing here waits for a front."""

import select
import socket
from dataclasses import dataclass, field

import msgspec

from dragoman.server.engine.api import Command, Leave, ModelCommand, ModelReport, Report
from dragoman.server.engine.lane_loop import DropWorker, ModelFront
from dragoman.server.engine.processes.frames import (
    MAX_QUEUED_BYTES,
    READ_BYTES,
    SIGN_OF_LIFE,
    FrameReader,
    framed,
)
from dragoman.server.engine.processes.messages import AddFront, DropModel, ToLane
from dragoman.server.processes.channel import Channel
from dragoman.server.processes.linux import trim_memory

__all__ = ["NO_FRONT", "SocketPort"]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ModelCommand).decode

_Received = list[tuple[ModelFront[int], Command | DropWorker]]

NO_FRONT = -1
"""What comes from the lane itself, or from the host."""
REST_S = 1.0
"""A lane without a command for so long gives memory back that it has freed."""


@dataclass(eq=False, slots=True)
class _Front:
    """A front's link, and what it has not taken yet.

    Attributes:
        keys: by which workers know the front, by model.
    """

    number: int
    socket: socket.socket
    keys: dict[str, ModelFront[int]] = field(default_factory=dict)
    reader: FrameReader = field(default_factory=FrameReader)
    unsent: bytearray = field(default_factory=bytearray)


class SocketPort:
    """The commands for one lane, from sockets: a `LanePort` that knows fronts by their numbers."""

    def __init__(self, host: "Channel[ToLane]") -> None:
        """`host` hands over a socket for each front; the lane ends when the host does."""
        self._host = host
        self._fronts: dict[int, _Front] = {}  # by descriptor
        self._by_number: dict[int, _Front] = {}
        self._is_retiring = False
        self._has_worked = False  # since memory was given back
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._poll = select.epoll()
        self._poll.register(host.fileno(), select.EPOLLIN)

    def receive(self, *, wait: bool) -> _Received | None:
        """What fronts want, with each one's number and the model; the commands of one front in their order.

        Args:
            wait: until there is something; else an empty list may be returned.

        Returns:
            None when the lane ends: the host is gone, or the lane retires and all fronts have gone. The last command
            of a front that is gone is `Leave`, to each model that it had to do with.
        """
        commands: _Received = []
        while True:
            events = self._poll.poll((REST_S if self._has_worked else None) if wait else 0)
            if wait and not events:
                trim_memory()
                self._has_worked = False
            for descriptor, event in events:
                front = self._fronts.get(descriptor)
                if front is None:
                    if not self._receive_from_host(commands):
                        return None
                    continue
                if event & select.EPOLLOUT:
                    self._flush(front)
                if event & ~select.EPOLLOUT:
                    commands += self._read(front)
            if self._is_retiring and not self._fronts:
                return None
            if commands or not wait:
                self._has_worked = self._has_worked or bool(commands)
                return commands

    def send(self, front: ModelFront[int], report: Report) -> None:
        """Send `report`. Where the front does not read, the report waits in memory of a bounded size."""
        model, number = front
        receiver = self._by_number.get(number)
        if receiver is None:  # it has gone
            return
        self._write(receiver, framed(_encode(ModelReport(model, report))))

    def _receive_from_host(self, commands: _Received) -> bool:
        """Take the sockets of new fronts, and what else the host says; returns False when the host is gone.

        A front with a new link has given up the old one: what came by that ends here, before what the new one brings.
        """
        try:
            while received := self._host.receive():
                message, descriptors = received
                if isinstance(message, DropModel):
                    for front in self._by_number.values():
                        front.keys.pop(message.model, None)
                    commands.append(((message.model, NO_FRONT), DropWorker()))
                    continue
                if not isinstance(message, AddFront):
                    self._is_retiring = True
                    continue
                for descriptor in descriptors:
                    if (before := self._by_number.get(message.front)) is not None:
                        commands += self._drop(before)
                    link = socket.socket(fileno=descriptor)
                    link.setblocking(False)
                    self._fronts[descriptor] = self._by_number[message.front] = _Front(message.front, link)
                    self._poll.register(descriptor, select.EPOLLIN)
        except ConnectionError:
            return False
        return True

    def _read(self, front: _Front) -> _Received:
        try:
            num_bytes = front.socket.recv_into(self._buffer)
        except BlockingIOError:
            return []
        except ConnectionError:
            num_bytes = 0
        if not num_bytes:
            return self._drop(front)
        commands: _Received = []
        for content in front.reader.feed(self._buffer[:num_bytes]):
            if not content:
                self._write(front, SIGN_OF_LIFE)
                continue
            message = _decode(content)
            key = front.keys.get(message.model)
            if key is None:
                key = front.keys[message.model] = (message.model, front.number)
            commands.append((key, message.command))
        return commands

    def _write(self, front: _Front, data: bytes) -> None:
        if front.unsent:
            front.unsent += data
            if len(front.unsent) > MAX_QUEUED_BYTES:
                front.socket.shutdown(socket.SHUT_RDWR)  # read as its end, in its turn
            return
        try:
            num_sent = front.socket.send(data)
        except BlockingIOError:
            num_sent = 0
        except ConnectionError:  # its end is read next
            return
        if num_sent < len(data):
            front.unsent += data[num_sent:]
            self._poll.modify(front.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, front: _Front) -> None:
        try:
            del front.unsent[: front.socket.send(front.unsent)]
        except BlockingIOError:
            return
        except ConnectionError:
            front.unsent.clear()
        if not front.unsent:
            self._poll.modify(front.socket.fileno(), select.EPOLLIN)

    def _drop(self, front: _Front) -> _Received:
        self._poll.unregister(front.socket.fileno())
        del self._fronts[front.socket.fileno()], self._by_number[front.number]
        front.socket.close()
        return [(key, Leave()) for key in front.keys.values()]
