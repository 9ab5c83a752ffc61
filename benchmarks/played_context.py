"""gRPC's side of a call, for a chain of interceptors without a server."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

__all__ = ["PlayedContext"]


class PlayedContext:
    """A call from another machine.

    Attributes:
        sent: messages that the call was answered with.
        status: that the call was aborted with.
        trailing: metadata that the answer ends with.
    """

    def __init__(
        self,
        *messages: bytes,
        metadata: Sequence[tuple[str, str]] = (),
        remaining_s: float | None = None,
        peer: str = "ipv4:192.0.2.7:4071",
    ) -> None:
        """The client sends `messages` and ends its sending."""
        self._messages = list(reversed(messages))
        self._metadata = tuple(metadata)
        self._remaining_s = remaining_s
        self._peer = peer
        self.sent: list[Any] = []
        self.status: grpc.Status | None = None
        self.trailing: Sequence[tuple[str, str | bytes]] = ()
        self._callbacks: list[Callable[[Any], object]] = []

    def end(self) -> None:
        """The status has been sent."""
        for callback in self._callbacks:
            callback(self)

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self.trailing = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return self._remaining_s

    def add_done_callback(self, callback: Any) -> None:
        self._callbacks.append(callback)

    async def read(self) -> Any:
        return self._messages.pop() if self._messages else grpc.aio.EOF  # nothing else holds it then

    async def write(self, message: Any) -> None:
        self.sent.append(message)

    async def abort_with_status(self, status: grpc.Status) -> None:
        self.status = status
