"""Batches of gRPC's core whose memory is freed when they end, also those that failed or that nobody awaits any more.

grpcio (1.85.1) frees what belongs to a batch of operations only when its coroutine gets to the end. A batch fails, or
its coroutine is cancelled, in most calls that a client cancels or whose deadline passes. Some 100 bytes then stay
behind for ever, and they keep the pages around them from being given back (grpc/grpc#43360).
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Generator
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # no stubs

__all__ = ["free_ended_batches"]

_execute_batch = cygrpc.execute_batch


def free_ended_batches() -> None:
    """Have grpc.aio, in this process, free every batch when gRPC's core ends it."""
    # There is no public way to it. A test fails when a version of grpcio changes this.
    cygrpc.execute_batch = execute_batch


async def execute_batch(call: Any, operations: tuple[Any, ...], loop: asyncio.AbstractEventLoop) -> None:
    """Have gRPC's core do these operations of a call, and return when they are done.

    Raises:
        grpc.aio.InternalError: the core failed or refused them: the call has ended.
    """
    batch = _Batch(_execute_batch(call, operations, loop), loop)
    batch.begin(loop)
    await batch.end


class _Batch:
    """A batch that runs: grpcio's coroutine takes it for the future that it awaits.

    Attributes:
        end: done when the batch has ended and is freed.
    """

    __slots__ = ("_coroutine", "end")

    def __init__(self, coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
        self._coroutine = coroutine
        self.end: asyncio.Future[None] = loop.create_future()

    def begin(self, loop: Any) -> None:
        """Hand the operations over to the core."""
        # grpcio's coroutine asks for it once, in this thread; nothing else runs in it meanwhile.
        loop.create_future = lambda: self
        try:
            self._coroutine.send(None)
        finally:
            del loop.create_future

    def __await__(self) -> Generator[None, None, None]:
        yield

    def cancelled(self) -> bool:
        """Of the core's callback: whether it need not say that the batch has ended."""
        return False

    def set_result(self, _: None) -> None:
        """The core has done the operations."""
        self._free()
        if not self.end.done():
            self.end.set_result(None)

    def set_exception(self, error: BaseException) -> None:
        """The core has failed."""
        self._free()
        if not self.end.done():
            self.end.set_exception(error)

    def _free(self) -> None:
        with contextlib.suppress(StopIteration):
            self._coroutine.send(None)
