"""The calls that a front answers at this moment: how many may run, and when a drain is done. Knows no transport."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from dragoman.server.engine.rate import Rate, retry_delay_s
from dragoman.server.errors import Overloaded

__all__ = ["CallsInFlight"]

QUIET_S = 0.05
QUIET_DECAY = 0.8
QUIET_TURNS = 20
"""Between a call's arrival and its begin lie a few turns of the event loop and of the transport's own threads; a turn
is long while many streams are being written."""

REST_S = 1.0
"""A front without a call for so long is at rest."""
REST_INTERVAL_S = 30.0
"""What is done at rest is done at most once in this time: each call of a rare caller would be followed by it."""


class CallsInFlight:
    """Counts calls that have begun and not ended.

    Attributes:
        count: calls of this moment.
        max_calls: that may run at one time.
    """

    def __init__(self, max_calls: int) -> None:
        self.count = 0
        self.max_calls = max_calls
        self._ends = Rate()  # of calls, while there are as many as may run
        self._was_full = False
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

    def check(self, now_s: float) -> None:
        """Refuse the call that began last when it is one too many.

        Raises:
            Overloaded: `max_calls` others run. The client tries again when about as many have ended.
        """
        if self.count > self.max_calls:
            self.pass_time(now_s)
            delay_s = retry_delay_s(self._ends.seconds_for(self.max_calls))
            raise Overloaded(f"{self.max_calls} calls are being answered already", delay_s)

    def pass_time(self, now_s: float, *, num_ended: int = 0) -> None:
        """Learn how fast calls end while there are as many as may run."""
        is_full = self.count >= self.max_calls
        if is_full or self._was_full:
            self._ends.pass_time(now_s, is_busy=self._was_full)
            self._ends.add(num_ended)
            self._was_full = is_full

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

    async def at_rest(
        self, act: Callable[[], Awaitable[object]], interval_s: float = REST_INTERVAL_S
    ) -> None:
        """Await `act()` when calls have run since the last time and there is none for `REST_S`; until cancelled."""
        seen = acted = 0
        acted_s = -interval_s
        while True:
            await asyncio.sleep(REST_S)
            is_at_rest = self.count == 0 and self._num_begun == seen
            seen = self._num_begun
            now_s = time.monotonic()
            if is_at_rest and acted != seen and now_s - acted_s >= interval_s:
                await act()
                acted, acted_s = seen, now_s

    async def wait_until_none_runs(self) -> None:
        """Return when no call runs and none has begun for a while."""
        while True:
            await self._idle.wait()
            await self.wait_until_none_begins()
            if self.count == 0:
                return
