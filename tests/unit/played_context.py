"""gRPC's side of a call, for a chain of interceptors without a server."""

from typing import Any

import grpc


class PlayedContext:
    """A call from another machine, with a message, without metadata and a deadline.

    Attributes:
        status: that the call was aborted with.
    """

    def __init__(self, message: bytes) -> None:
        self._messages = [message]
        self.status: grpc.Status | None = None

    def peer(self) -> str:
        return "ipv4:192.0.2.7:4071"

    def set_trailing_metadata(self, _: Any) -> None: ...

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> float | None:
        return None

    def add_done_callback(self, _: Any) -> None: ...

    async def read(self) -> bytes:
        return self._messages.pop()  # nothing else holds it then

    async def abort_with_status(self, status: grpc.Status) -> None:
        self.status = status
