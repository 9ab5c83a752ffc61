"""The end of serving over gRPC, without the loss of a call.

When a server stops, gRPC's core ends the calls that it has accepted and not yet handed over, with CANCELLED.
So calls that begin are held first: callers wait for their answers and send nothing new, and soon the core has
handed over all there is. Then gRPC sends GOAWAY to every client, and only then the held calls run on.
"""

import asyncio
import contextlib

import grpc.aio

from dragoman.server.requests.in_flight import CallsInFlight

__all__ = ["CallGate", "GrpcStop"]

MAX_HOLD_S = 0.5
"""How long calls are held where new ones never cease to come.

Only quiet helps. To wait until gRPC's core has handed over what it counts as accepted changed nothing on a starved
machine: it also ends calls that are on their way while it sends GOAWAY.
"""

STOP_LIMIT_S = 2.0
"""How long gRPC may take to end all calls and connections at once."""

FOREVER_S = 1e6
"""The grace that gRPC is given: this file decides when it is over."""


class CallGate:
    """Lets calls that have been taken up wait before they run."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._was_closed = asyncio.Event()

    def close(self) -> None:
        """Let calls that come from now on wait."""
        self._is_open.clear()
        self._was_closed.set()

    def open(self) -> None:
        """Let calls that wait run."""
        self._is_open.set()

    async def wait(self) -> None:
        """Return at once, or where the gate is closed after `open`."""
        if not self._is_open.is_set():
            await self._is_open.wait()

    async def wait_until_closed(self) -> None:
        """Return when the server refuses new calls, or is about to."""
        await self._was_closed.wait()


class GrpcStop:
    """Stops a gRPC server. Only one `stop` of it runs at a time: two of them crash in gRPC's core."""

    def __init__(self, server: grpc.aio.Server, in_flight: CallsInFlight, gate: CallGate) -> None:
        """`in_flight` counts the calls of `server`, each of which passes `gate` first."""
        self._server = server
        self._in_flight = in_flight
        self._gate = gate
        self._refusing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def num_running(self) -> int:
        """Calls that run at this moment."""
        return self._in_flight.count

    async def drain(self, timeout_s: float) -> int:
        """Refuse new connections and calls, let running calls end; returns how many did not in `timeout_s`.

        Those go on until `end`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                self._gate.close()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._in_flight.wait_until_none_begins(), MAX_HOLD_S)
                await self._refuse()
                self._gate.open()
                await self._in_flight.wait_until_none_runs()
        except TimeoutError:
            self._gate.open()
        return self.num_running

    async def end(self) -> bool:
        """End whatever still runs, also streams that never end by themselves (health watchers).

        Returns whether gRPC has stopped; where it has not, the process must not be torn down. A client that does not
        read can keep gRPC from closing its connection. Only the first call waits for that.
        """
        if self._ending is None:
            if self._refusing is not None:
                self._refusing.cancel()
                await asyncio.wait([self._refusing])
            # Never cancelled: that would cancel gRPC's own future of its end, on which a later wait would fail.
            self._ending = asyncio.create_task(self._server.stop(None))
            await asyncio.wait([self._ending], timeout=STOP_LIMIT_S)
        if not self._ending.done():
            return False
        self._ending.result()  # raises what gRPC raised
        return True

    async def _refuse(self) -> None:
        self._refusing = asyncio.create_task(self._server.stop(FOREVER_S))
        await asyncio.sleep(0)  # in its first turn it sends GOAWAY
