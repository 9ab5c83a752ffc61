"""grpc.aio's server, which takes up many calls at once and whose accepting loop a caller cannot end.

grpcio (1.85.1) decodes the path of a call that is for no registered method in the very loop that accepts
calls. A path that is not UTF-8 ends the loop, and with it every call of every client. All methods of this server
are registered, so a call without one is refused here, before grpcio looks at its path.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # no stubs

from dragoman.server.fronts.grpc.batches import free_ended_batches

__all__ = ["make_server"]

NUM_ACCEPTING = 16
"""Calls of one method that the event loop can take up in one turn. grpcio takes up one in three or four turns, and a
turn of a busy loop lasts milliseconds: calls then wait in gRPC's core until it drops them. Measured on two cores with
deadlines of a second, calls answered in time at 1,000 and 3,000 a second: 1,000 and 1,777 with 16, 563 and 498 with
one, 1,000 and 251 with 64 (and a longer queue)."""


def make_server(
    options: Sequence[tuple[str, Any]],
    on_crash: Callable[[BaseException], object],
    on_call: Callable[[], object] = lambda: None,
) -> grpc.aio.Server:
    """Return a server like `grpc.aio.server`'s, without interceptors: grpcio looks for them anew in each call.

    `on_crash` is called when the server can accept no more calls, `on_call` for each call that gRPC hands over, one of
    an unknown method included.
    """
    free_ended_batches()
    server: Any = grpc.aio.server(options=options)
    loop = asyncio.get_running_loop()
    # There is no public way to it. A test calls with such a path, and fails when a version changes this.
    server._server = _AcceptingServer(loop, None, (), (), tuple(options), None)  # noqa: SLF001
    server._server.prepare(loop, on_crash, on_call)  # noqa: SLF001
    return server  # type: ignore[no-any-return]


class _AcceptingServer(cygrpc.AioServer):  # type: ignore[misc]  # no stubs
    def prepare(
        self,
        loop: asyncio.AbstractEventLoop,
        on_crash: Callable[[BaseException], object],
        on_call: Callable[[], object],
    ) -> None:
        self.loop = loop
        self.on_crash = on_crash
        self.on_call = on_call
        self.handlers: dict[str, Any] = {}
        self.resolver: Any = None
        self.accepting: dict[bytes, set[asyncio.Task[None]]] = {}
        self.calls: set[asyncio.Task[None]] = set()
        self.refusals: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        self.handlers.update(handlers)
        super().add_registered_method_handlers(handlers)

    async def _request_registered_call(self, method: bytes) -> Any:
        """Called for the next call of a method. Others take up calls of it beside this one."""
        if method not in self.accepting:
            if self.resolver is None:  # all methods are registered before the first call
                self.resolver = cygrpc._MethodResolver([], self.handlers)  # noqa: SLF001
            tasks = [self.loop.create_task(self._accept(method)) for _ in range(NUM_ACCEPTING - 1)]
            for task in tasks:
                task.add_done_callback(self._serving_task_crash_handler)
            self.accepting[method] = set(tasks)
        call = await super()._request_registered_call(method)
        self.on_call()
        return call

    async def _accept(self, method: bytes) -> None:
        """Take up calls of a method, as grpcio's own loop does, until the server stops."""
        name = method.decode()
        while self.is_running():
            try:
                call = await super()._request_registered_call(method)
            except cygrpc._RequestCallError:  # noqa: SLF001
                continue
            self.on_call()
            handling = cygrpc._handle_rpc(name, self.resolver, (), call, self.loop, False)  # noqa: SLF001
            task = self.loop.create_task(cygrpc._schedule_rpc_coro(handling, call, self.loop, name))  # noqa: SLF001
            self.calls.add(task)
            task.add_done_callback(self.calls.discard)

    async def _request_call(self) -> Any:
        """Called for the next call that is for no registered method; returns none."""
        while True:
            call = await super()._request_call()
            self.on_call()
            refusal = self.loop.create_task(self._refuse(call))
            self.refusals.add(refusal)
            refusal.add_done_callback(self.refusals.discard)

    async def _refuse(self, call: Any) -> None:
        context = cygrpc._ServicerContext(call, None, None, self.loop)  # noqa: SLF001
        with contextlib.suppress(grpc.aio.AbortError, grpc.aio.InternalError):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")

    def _serving_task_crash_handler(self, task: "asyncio.Task[None]") -> None:
        if self.is_running() and not task.cancelled() and (error := task.exception()) is not None:
            self.on_crash(error)
        super()._serving_task_crash_handler(task)
