"""How many calls a front answers at this moment, so that a drain knows when it is done. Knows no transport."""

import asyncio

__all__ = ["CallsInFlight"]

QUIET_S = 0.05
QUIET_DECAY = 0.8
QUIET_TURNS = 20
"""Between a call's arrival and its begin lie a few turns of the event loop and of the transport's own threads; a turn
is long while many streams are being written."""


class CallsInFlight:
    """Counts calls that have begun and not ended.

    Attributes:
        count: calls of this moment.
    """

    def __init__(self) -> None:
        self.count = 0
        self._num_begun = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Count a call that a front has taken up."""
        self.count += 1
        self._num_begun += 1
        self._idle.clear()

    def end(self) -> None:
        """Count the end of a call: its last byte has been sent."""
        self.count -= 1
        if self.count == 0:
            self._idle.set()

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
