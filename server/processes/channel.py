"""Messages and descriptors between two processes: one end of a pair of Unix sockets that keep packets whole."""

import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    import asyncio

__all__ = ["Channel", "packet_pair", "stream_pair"]

_MAX_PACKET_BYTES = 1 << 17
"""Larger than any message; smaller than what a socket takes at once on any Linux (`net.core.wmem_default`)."""
_MAX_DESCRIPTORS = 2
MAX_QUEUED_PACKETS = 4096
"""Packets that a peer may leave unread: a front that is stopped, while lanes come and go."""

_encode = msgspec.msgpack.Encoder().encode

Received = TypeVar("Received")


def packet_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets for channels."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def stream_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets for a link between a front and a lane."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Channel(Generic[Received]):
    """Sends and receives messages; never blocks.

    Attributes:
        has_unsent: whether packets wait until the peer takes some; call `flush` when the socket can be written, or
            `flush_in` once.
    """

    def __init__(self, sock: socket.socket, received: Any) -> None:
        """`received` is the type of what the peer sends: a struct, or a union of structs."""
        sock.setblocking(False)
        self._socket = sock
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(received)
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_writer = False

    def flush_in(self, loop: "asyncio.AbstractEventLoop | None") -> None:
        """Have `loop` send what is queued, as soon as the peer takes it: an answer that waits may be the last one.

        None: no longer, as before another thread closes the channel.
        """
        self._set_writer(is_needed=False)
        self._loop = loop

    def fileno(self) -> int:
        """The socket's descriptor, for selectors; -1 once it is closed."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether packets wait until the peer takes some."""
        return bool(self._unsent)

    def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Send `message`, or queue it where the peer does not read. The descriptors are closed once they are sent.

        Raises:
            ConnectionError: the peer is gone, or leaves too much unread, or this end is closed.
        """
        self._unsent.append((_encode(message), tuple(descriptors)))
        if self.fileno() < 0:
            self.close()  # the descriptors too
            raise ConnectionError("the channel is closed")
        if len(self._unsent) > MAX_QUEUED_PACKETS:
            raise ConnectionError("the peer does not read")
        self.flush()

    def flush(self) -> None:
        """Send what is queued, as far as the peer takes it.

        Raises:
            ConnectionError: the peer is gone.
        """
        while self._unsent:
            packet, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._socket, [packet], descriptors)
            except BlockingIOError:
                self._set_writer(is_needed=True)
                return
            self._unsent.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        self._set_writer(is_needed=False)

    def receive(self) -> tuple[Received, list[int]] | None:
        """The next message and its descriptors, which are the caller's now; None where there is none yet.

        Raises:
            ConnectionError: the peer is gone, and all that it sent has been received.
        """
        try:
            packet, descriptors, _, _ = socket.recv_fds(
                self._socket, _MAX_PACKET_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        if not packet:
            raise ConnectionError("the peer is gone")
        return self._decoder.decode(packet), descriptors

    def wait(self) -> tuple[Received, list[int]]:
        """The next message and its descriptors, once they come.

        Raises:
            ConnectionError: the peer is gone.
        """
        while (received := self.receive()) is None:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.poll()
        return received

    def close(self) -> None:
        """Close the socket and what was not sent. Harmless when it is closed."""
        for _, descriptors in self._unsent:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._unsent.clear()
        self._set_writer(is_needed=False)
        self._socket.close()

    def _set_writer(self, *, is_needed: bool) -> None:
        if self._loop is None or is_needed == self._has_writer:
            return
        self._has_writer = is_needed
        if is_needed:
            self._loop.add_writer(self.fileno(), self._flush_in_loop)
        else:
            self._loop.remove_writer(self.fileno())

    def _flush_in_loop(self) -> None:
        try:
            self.flush()
        except ConnectionError:  # the owner reads that next
            self._set_writer(is_needed=False)
