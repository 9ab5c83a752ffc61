"""Sharing the event loop while something large is made on it."""

import asyncio
import time

__all__ = ["Pace"]

_MAX_TURN_S = 0.002


class Pace:
    """Ends a coroutine's turn where it has lasted long enough; await it between pieces of work."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()

    def begin_turn(self) -> None:
        """Say that the coroutine had to wait: others had their turn, and a new one of its own begins."""
        self._began_s = time.perf_counter()

    async def __call__(self) -> None:
        """Let others have their turn, if this one has lasted long enough."""
        if time.perf_counter() - self._began_s > _MAX_TURN_S:
            await asyncio.sleep(0)
            self.begin_turn()
