"""A front's end of a link with one lane, on the front's event loop."""

import asyncio
import socket
from collections.abc import Callable
from typing import Self

import msgspec

from dragoman.server.engine.api import Command, ModelCommand, ModelReport, Report
from dragoman.server.engine.processes.frames import (
    MAX_QUEUED_BYTES,
    READ_BYTES,
    SIGN_OF_LIFE,
    FrameReader,
    framed,
)
from dragoman.server.engine.watchdog import NUM_LOOKS

__all__ = ["ASKING_INTERVAL_S", "SocketLink"]

ASKING_INTERVAL_S = 5.0
"""How often a lane is asked for a sign of life. It answers between two steps. One that leaves `NUM_LOOKS` questions
unanswered is given up."""
MAX_UNSENT_BYTES = 1 << 16
"""Commands of so many bytes go out before the event loop's turn ends."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ModelReport).decode


class SocketLink(asyncio.BufferedProtocol):
    """Commands to one lane, reports from it, for all models there.

    Attributes:
        is_silent: whether the lane was given up because it gave no sign of life.
        lost: done when the lane is gone, after `on_lost`.
    """

    def __init__(
        self,
        on_report: Callable[[str, Report], object],
        on_lost: Callable[[], object],
        *,
        asking_interval_s: float = ASKING_INTERVAL_S,
    ) -> None:
        self.is_silent = False
        self._on_report = on_report
        self._on_lost = on_lost
        self._asking_interval_s = asking_interval_s
        self._reader = FrameReader()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._num_unanswered = 0
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport
        self._asking: asyncio.TimerHandle

    @classmethod
    async def open(
        cls,
        sock: socket.socket,
        on_report: Callable[[str, Report], object],
        on_lost: Callable[[], object],
        *,
        asking_interval_s: float = ASKING_INTERVAL_S,
    ) -> Self:
        """A link over `sock`.

        Args:
            sock: the front's end.
            on_report: called with a model's key and its report.
            on_lost: called once, when the lane is gone or given up, or after `close`.
            asking_interval_s: between two questions for a sign of life.
        """
        loop = asyncio.get_running_loop()
        _, link = await loop.connect_accepted_socket(
            lambda: cls(on_report, on_lost, asking_interval_s=asking_interval_s), sock
        )
        return link

    def send(self, model: str, command: Command) -> None:
        """Send `command` for the model with this key; returns at once. After the lane is lost it goes nowhere."""
        if not self._transport.is_closing():
            self._queue(framed(_encode(ModelCommand(model, command))))

    def close(self) -> None:
        """Give the lane up: it cancels what it holds for this front."""
        self._flush()
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._asking = self._loop.call_later(self._asking_interval_s, self._ask)

    def get_buffer(self, size_hint: int) -> memoryview:  # noqa: ARG002
        """Called by asyncio."""
        return self._buffer

    def buffer_updated(self, num_bytes: int) -> None:
        """Called by asyncio."""
        self._num_unanswered = 0
        for content in self._reader.feed(self._buffer[:num_bytes]):
            if content:
                message = _decode(content)
                self._on_report(message.model, message.report)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  how it ended is for the host to say
        """Called by asyncio, also after `close`."""
        self._asking.cancel()
        try:
            self._on_lost()
        finally:
            self.lost.set_result(None)

    def _queue(self, data: bytes) -> None:
        # What is sent in one turn of the event loop goes out together: one system call and one wake-up of the lane
        # for many calls. It is bounded, and after that it counts as what the transport has queued.
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += data
        if len(self._unsent) >= MAX_UNSENT_BYTES:
            self._flush()

    def _flush(self) -> None:
        data, self._unsent = self._unsent, bytearray()
        if not data or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_QUEUED_BYTES:
            self._give_up()

    def _ask(self) -> None:
        if self._num_unanswered == NUM_LOOKS:
            self._give_up()
            return
        self._num_unanswered += 1
        self._asking = self._loop.call_later(self._asking_interval_s, self._ask)
        self._queue(SIGN_OF_LIFE)

    def _give_up(self) -> None:
        self.is_silent = True
        self._transport.abort()
