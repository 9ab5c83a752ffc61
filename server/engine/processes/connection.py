"""A front's connection with the engine's host: which models there are, and a link to each lane."""

import asyncio
import contextlib
import socket
from typing import Protocol

from dragoman.server.engine.processes.messages import (
    ChangeTaken,
    EndLane,
    LaneAdded,
    LaneRemoved,
    LaneRetired,
    LinkLane,
    LoadingEnded,
    ModelAdded,
    ModelLoaded,
    ModelNotLoaded,
    ModelRemoved,
    ToFront,
)
from dragoman.server.processes.channel import Channel
from dragoman.server.processes.memory_files import read_memory_file

__all__ = ["HostConnection", "Listener"]

_RELINK_DELAY_S = 0.5
"""Before another link with a lane is asked for. A lane that has ended is told as removed much sooner."""


class Listener(Protocol):
    """Hears of models and lanes, on the event loop, in the order in which they come and go."""

    def model_loaded(self, model: ModelLoaded, manifest: bytes, tokenizer: bytes) -> None:
        """A model is loaded; its lanes follow."""

    def model_not_loaded(self, model: ModelNotLoaded) -> None:
        """A folder is not served."""

    def lane_added(self, lane: LaneAdded, link: socket.socket) -> None:
        """A lane waits for work on `link`. A lane of the same number may not have been told as removed yet."""

    def lane_retired(self, lane: LaneRetired) -> None:
        """A lane's process gets nothing more. The link with it is closed once nothing is left there."""

    def lane_removed(self, lane: LaneRemoved) -> None:
        """A lane's process has ended; its link ends by itself."""

    def loading_ended(self) -> None:
        """All models have been told, and all lanes that there are."""

    def model_added(self, model: ModelAdded) -> None:
        """Calls may come for a model that was told as loaded; lanes that have it were told. `take` follows."""

    def model_removed(self, model: ModelRemoved) -> None:
        """No call for a model begins any more. `take` follows when none runs."""


class HostConnection:
    """Receives the host's messages to one front."""

    def __init__(self, sock: socket.socket, listener: Listener) -> None:
        """`sock` is what `Supervisor.connect` returned, in this process or another. Call from a running event loop."""
        self._channel: Channel[ToFront] = Channel(sock, ToFront)
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._channel.flush_in(self._loop)
        self._loop.add_reader(self._channel.fileno(), self._read)

    def end_lane(self, pid: int) -> None:
        """Have a lane's process ended that gives no sign of life."""
        self._send(EndLane(pid))

    def request_link(self, pid: int) -> None:
        """Have `lane_added` called again, with a new link, if the lane's process has not ended with its link."""
        self._loop.call_later(_RELINK_DELAY_S, self._send, LinkLane(pid))

    def confirm_change(self, model: str) -> None:
        """Confirm to the host that this front has made the change of the model with this key."""
        self._send(ChangeTaken(model))

    def close(self) -> None:
        """Receive nothing more. Links stay. Harmless when the host is gone."""
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()

    def _send(self, message: EndLane | LinkLane | ChangeTaken) -> None:
        with contextlib.suppress(ConnectionError):  # the host is gone, and so are its lanes
            self._channel.send(message)

    def _read(self) -> None:
        try:
            while self._channel.fileno() >= 0 and (received := self._channel.receive()):
                self._notify_listener(*received)
        except ConnectionError:  # a new host connects anew
            self.close()

    def _notify_listener(self, message: ToFront, descriptors: list[int]) -> None:
        if isinstance(message, ModelLoaded):
            self._listener.model_loaded(message, *map(read_memory_file, descriptors))
        elif isinstance(message, ModelNotLoaded):
            self._listener.model_not_loaded(message)
        elif isinstance(message, LaneAdded):
            if descriptors:
                self._listener.lane_added(message, socket.socket(fileno=descriptors[0]))
            else:  # this process may have no more files at the moment
                self.request_link(message.pid)
        elif isinstance(message, LaneRetired):
            self._listener.lane_retired(message)
        elif isinstance(message, LaneRemoved):
            self._listener.lane_removed(message)
        elif isinstance(message, ModelAdded):
            self._listener.model_added(message)
        elif isinstance(message, ModelRemoved):
            self._listener.model_removed(message)
        else:
            assert isinstance(message, LoadingEnded)
            self._listener.loading_ended()
