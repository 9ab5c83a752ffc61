"""The end of serving: which calls still run, and how gRPC is told to stop without losing one.

gRPC's core ends calls that it has accepted and not yet handed over with CANCELLED when it is told to stop.
So calls that begin are held first: callers wait for their answers and send nothing new, and soon the core has
handed over all there is. Then every client is told to go away (GOAWAY), and only then the held calls run on.
"""

import asyncio
import contextlib

import grpc.aio

__all__ = ["CallsInFlight", "GrpcStop"]

QUIET_S = 0.05
QUIET_DECAY = 0.8
QUIET_TURNS = 20
"""Between a call's arrival and its begin lie a few turns of the event loop and of gRPC's own threads; a turn
is long while many streams are being written."""

MAX_HOLD_S = 0.5
"""How long calls are held where new ones never cease to come."""

STOP_LIMIT_S = 2.0
"""How long gRPC may take to end what it was told to end at once."""

FOREVER_S = 1e6
"""The grace that gRPC is given: this file decides when it is over."""


class CallsInFlight:
    """Counts calls that have begun and not ended, so that a drain knows when it is done."""

    def __init__(self) -> None:
        self.count = 0
        self._num_begun = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._may_run = asyncio.Event()
        self._may_run.set()

    def begin(self) -> None:
        """A call has begun."""
        self.count += 1
        self._num_begun += 1
        self._idle.clear()

    def end(self) -> None:
        """A call has ended."""
        self.count -= 1
        if self.count == 0:
            self._idle.set()

    def hold(self) -> None:
        """Let calls that begin from now on wait."""
        self._may_run.clear()

    def release(self) -> None:
        """Let held calls run."""
        self._may_run.set()

    async def wait_while_held(self) -> None:
        """Return at once, or after `release` where calls are held."""
        if not self._may_run.is_set():
            await self._may_run.wait()

    async def wait_until_none_begins(self) -> None:
        """Return when no call has begun for a while: those that had arrived have been taken up.

        The while gets shorter, so that a gap is found also between calls that come at a steady rate.
        """
        num_begun, quiet_s = -1, QUIET_S
        while num_begun != self._num_begun:
            num_begun = self._num_begun
            await asyncio.sleep(quiet_s)
            quiet_s *= QUIET_DECAY
            for _ in range(QUIET_TURNS):
                await asyncio.sleep(0)

    async def wait_until_none_runs(self) -> None:
        """Return when no call runs and none has begun for a while."""
        while True:
            await self._idle.wait()
            await self.wait_until_none_begins()
            if self.count == 0:
                return


class GrpcStop:
    """Stops a gRPC server. Only one `stop` of it runs at a time: two of them crash in gRPC's core."""

    def __init__(self, server: grpc.aio.Server, calls: CallsInFlight) -> None:
        self._server = server
        self._calls = calls
        self._refusing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    async def drain(self, timeout_s: float) -> int:
        """Refuse new connections and calls, let running calls end; returns how many did not in `timeout_s`.

        Those go on until `end`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                self._calls.hold()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._calls.wait_until_none_begins(), MAX_HOLD_S)
                await self._refuse()
                self._calls.release()
                await self._calls.wait_until_none_runs()
        except TimeoutError:
            self._calls.release()
        return self._calls.count

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
