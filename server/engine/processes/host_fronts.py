"""The fronts of a host: what was announced to them, and the channels with them. Nothing here waits for a front."""

import contextlib
import os
import select
import socket
from collections.abc import Callable, Sequence

from dragoman.server.engine.processes.messages import FromFront, ToFront
from dragoman.server.processes.channel import Channel
from dragoman.server.processes.memory_files import memory_file

__all__ = ["HostFronts"]


class HostFronts:
    """The channels of a host with its fronts, by the fronts' numbers.

    Attributes:
        channels: read-only.
    """

    def __init__(self, poll: "select.epoll") -> None:
        """`poll` is the host's: what comes from fronts is read by the host."""
        self.channels: dict[int, Channel[FromFront]] = {}
        self._poll = poll
        self._announced: dict[str, tuple[ToFront, tuple[int, ...]]] = {}  # by key; a new front gets all of it

    def announce(self, key: str, message: ToFront, contents: Sequence[bytes] = ()) -> None:
        """Send `message` with `contents` as files in memory to all fronts; to those that come later until `forget`."""
        descriptors = tuple(memory_file(content) for content in contents)
        self._announced[key] = message, descriptors
        for number in list(self.channels):
            self.send(number, message, descriptors)

    def forget(self, key: str) -> None:
        """Fronts that come from now on do not get what was announced under `key`."""
        _, descriptors = self._announced.pop(key)
        for descriptor in descriptors:
            os.close(descriptor)

    def add(self, number: int, descriptor: int) -> None:
        """A front has come."""
        self.channels[number] = Channel(socket.socket(fileno=descriptor), FromFront)
        self._poll.register(descriptor, select.EPOLLIN)
        for message, descriptors in self._announced.values():
            self.send(number, message, descriptors)

    def receive(self, number: int, event: int, obey: Callable[[int, FromFront], object]) -> None:
        """Receive a front's messages, each for `obey`, and write what it did not take before, as `event` has it."""
        if event & select.EPOLLOUT:
            self._flush(number)
        try:
            while (channel := self.channels.get(number)) is not None and (received := channel.receive()):
                obey(number, received[0])
        except ConnectionError:
            self._drop(number)

    def send_all(self, message: ToFront) -> None:
        """Send `message` to the fronts that there are."""
        for number in list(self.channels):
            self.send(number, message)

    def send(self, number: int, message: ToFront, descriptors: Sequence[int] = ()) -> None:
        """Send copies of `descriptors`, so that others can have them too. A front that is gone gets nothing."""
        channel = self.channels.get(number)
        if channel is None:
            return
        try:
            channel.send(message, [os.dup(descriptor) for descriptor in descriptors])
        except ConnectionError:
            self._drop(number)
            return
        if channel.has_unsent:
            self._poll.modify(channel.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def leave(self) -> None:
        """In a forked process: close all of it. Fronts do not hear of that."""
        for channel in self.channels.values():
            channel.close()
        for _, descriptors in self._announced.values():
            for descriptor in descriptors:
                os.close(descriptor)

    def _flush(self, number: int) -> None:
        channel = self.channels[number]
        with contextlib.suppress(ConnectionError):  # read as its end, in its turn
            channel.flush()
        if not channel.has_unsent:
            self._poll.modify(channel.fileno(), select.EPOLLIN)

    def _drop(self, number: int) -> None:
        """Forget a front that is gone. Lanes hear of it by their links."""
        channel = self.channels.pop(number)
        self._poll.unregister(channel.fileno())
        channel.close()
