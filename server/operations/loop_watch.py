"""An event loop that stands still is noticed by a thread of its own: readiness goes off, at last the process ends.

Nothing else could: whatever the loop would do to find it out does not happen.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Self

import structlog

from dragoman.server.processes.silence import Silence

__all__ = ["LoopWatch"]

BEAT_INTERVAL_S = 1.0
WATCH_INTERVAL_S = 5.0
MAX_SILENT_LOOKS_READY = 2
"""A loop without a sign of life at so many looks in a row, for 10 s, answers no call in time."""
MAX_SILENT_LOOKS = 12
"""After 60 s it does not come back."""

_log = structlog.get_logger(__name__)


class LoopWatch:
    """Watches the event loop in which it is made, from the begin of its `with` block to the end."""

    def __init__(
        self,
        set_stuck: Callable[[bool], object],
        leave: Callable[[str], object],
        *,
        watch_interval_s: float = WATCH_INTERVAL_S,
    ) -> None:
        """A thread calls `set_stuck` with whether the loop stands still, and `leave` to end the process."""
        self._set_stuck = set_stuck
        self._leave = leave
        self._watch_interval_s = watch_interval_s
        self._num_beats = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)

    def __enter__(self) -> Self:
        self._beating = asyncio.get_running_loop().create_task(self._beat())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._beating.cancel()
        self._is_over.set()
        self._thread.join()

    async def _beat(self) -> None:
        while True:
            self._num_beats += 1
            await asyncio.sleep(min(BEAT_INTERVAL_S, self._watch_interval_s / 2))

    def _watch(self) -> None:
        silence, is_stuck = Silence(self._num_beats), False
        while not self._is_over.wait(self._watch_interval_s):
            num_looks = silence.look(self._num_beats)
            if is_stuck != (num_looks >= MAX_SILENT_LOOKS_READY):
                is_stuck = not is_stuck
                self._set_stuck(is_stuck)
                with contextlib.suppress(Exception):
                    _log.warning("event_loop_stuck" if is_stuck else "event_loop_goes_on")
            if num_looks >= MAX_SILENT_LOOKS:
                self._leave("the event loop gives no sign of life")
