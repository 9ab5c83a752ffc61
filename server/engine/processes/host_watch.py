"""A host that is stopped or hangs is noticed: lanes go on without it, but none is replaced and nothing is loaded."""

import asyncio
import math
from collections.abc import Callable

__all__ = ["MAX_UNANSWERED", "PROBE_INTERVAL_S", "HostWatch"]

PROBE_INTERVAL_S = 5.0
MAX_UNANSWERED = 12
"""A host that leaves so many questions unanswered in a row, for 60 s, is replaced, which costs what its lanes compute.
It may take ten times as many as it did while the models were loaded first, as it answers nothing while it loads. What
is counted is the questions, not the time: this process may have been stopped itself."""
_LOADINGS = 10


class HostWatch:
    """Asks hosts for signs of life, one host after the other. On one event loop."""

    def __init__(self, ask: Callable[[], object], give_up: Callable[[], object]) -> None:
        """`ask` sends the present host a question; `give_up` ends it."""
        self._ask = ask
        self._give_up = give_up
        self._num_unanswered = 0
        self._limit: float = math.inf  # the first loading takes as long as it does
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """There is another host."""
        self.end()
        self._num_unanswered = 0
        self._timer = asyncio.get_running_loop().call_later(PROBE_INTERVAL_S, self._look)

    def heard(self) -> None:
        """The host has said something, for the first time that its models are loaded."""
        if self._limit == math.inf:
            self._limit = max(MAX_UNANSWERED, _LOADINGS * self._num_unanswered)
        self._num_unanswered = 0

    def end(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        if self._num_unanswered >= self._limit:
            self._give_up()
            return
        self._num_unanswered += 1
        self._timer = asyncio.get_running_loop().call_later(PROBE_INTERVAL_S, self._look)
        self._ask()
