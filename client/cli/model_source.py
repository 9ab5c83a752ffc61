"""Where the model is that a command asks."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.asynchronous import AsyncClient
    from client.blocking import Client

__all__ = ["ModelSource"]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model on a server.

    Attributes:
        target: The server.
        model: The model's name.
        version: Its version; empty is the highest.
        timeout_s: Deadline of each call, and how long a call may be repeated while the server has no room.
    """

    target: str
    model: str
    version: str
    timeout_s: float

    @contextlib.asynccontextmanager
    async def connect(self) -> "AsyncIterator[AsyncClient]":
        """Give a client that asks it."""
        from client.asynchronous import AsyncClient

        async with AsyncClient(self.target, timeout_s=self.timeout_s) as client:
            yield client

    @contextlib.contextmanager
    def connect_blocking(self) -> "Iterator[Client]":
        """Give a blocking client that asks it."""
        from client.blocking import Client

        with Client(self.target, timeout_s=self.timeout_s) as client:
            yield client
