"""A host that is stopped or hangs is noticed: lanes go on without it, but none is replaced and nothing is loaded."""

import asyncio
import math
from collections.abc import Callable

__all__ = ["MAX_UNANSWERED", "PROBE_INTERVAL_S", "HostWatch"]

PROBE_INTERVAL_S = 5.0
MAX_UNANSWERED = 12
"""A host that leaves so many questions unanswered in a row, for 60 s, is replaced, which costs what its lanes compute.
What is counted is the questions, not the time: this process may have been stopped itself."""
_LOADINGS = 10
"""A host answers nothing while it loads. A later host may leave ten times as many questions unanswered as the first one
did until its models were loaded. A host that loads one more version may leave ten times as many unanswered as it
answered while a child tried the version: trying is reading and loading, and more."""


class HostWatch:
    """Asks hosts for signs of life, one host after the other. On one event loop."""

    def __init__(self, ask: Callable[[], object], give_up: Callable[[], object]) -> None:
        """`ask` sends the present host a question; `give_up` ends it."""
        self._ask = ask
        self._give_up = give_up
        self._num_unanswered = 0
        self._num_answered = 0  # in the change that is being made
        self._loading_limit: float = math.inf  # the first loading takes as long as it does
        self._is_loading = True
        self._is_changing = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """There is another host, which loads."""
        self.end()
        self._num_unanswered, self._is_loading, self._is_changing = 0, True, False
        self._timer = asyncio.get_running_loop().call_later(PROBE_INTERVAL_S, self._look)

    def note_sign(self) -> None:
        """The host has sent a message: the first one says that its models are loaded, each is a sign of life."""
        if self._loading_limit == math.inf:
            self._loading_limit = max(MAX_UNANSWERED, _LOADINGS * self._num_unanswered)
        self._num_answered += self._num_unanswered
        self._num_unanswered, self._is_loading = 0, False

    def begin_change(self) -> None:
        """The host was asked for a change, for which it may load a version."""
        self._num_answered, self._is_changing = 0, True

    def end_change(self) -> None:
        """The change is made, or has failed."""
        self._is_changing = False

    def end(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _limit(self) -> float:
        if self._is_loading:
            return self._loading_limit
        if self._is_changing:
            return max(self._loading_limit, _LOADINGS * self._num_answered)
        return MAX_UNANSWERED

    def _look(self) -> None:
        if self._num_unanswered >= self._limit:
            self._give_up()
            return
        self._num_unanswered += 1
        self._timer = asyncio.get_running_loop().call_later(PROBE_INTERVAL_S, self._look)
        self._ask()
