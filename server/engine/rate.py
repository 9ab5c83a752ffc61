"""How fast work is done, of late, and how long what waits takes. Pure bookkeeping: the time is handed in."""

import math

__all__ = ["MAX_DELAY_S", "MEMORY_S", "MIN_DELAY_S", "Backlog", "Rate", "retry_delay_s"]

MIN_DELAY_S, MAX_DELAY_S = 0.1, 5.0
"""Bounds of the delay after which a refused client tries again."""
UNKNOWN_DELAY_S = 1.0
"""That delay where nothing says how fast the work is done."""
MEMORY_S = 0.5
"""How fast a rate is forgotten, in seconds of busy time, where its owner does not say."""


class Rate:
    """Work that is done in a second of busy time, in any unit.

    Only busy time counts, in which more is to be done than is done at once: an idle server does not show its speed.
    """

    __slots__ = ("_num_done", "_seconds", "_seen_s")

    def __init__(self) -> None:
        # Both decay together. Their quotient is the rate.
        self._num_done = 0.0
        self._seconds = 0.0
        self._seen_s = 0.0

    @property
    def is_known(self) -> bool:
        """Whether there was enough busy time to tell."""
        return self._seconds >= MEMORY_S / 10

    def pass_time(self, now_s: float, *, is_busy: bool, memory_s: float = MEMORY_S) -> None:
        """Let time pass until `now_s`."""
        if is_busy:
            passed_s = now_s - self._seen_s
            decay = math.exp(-passed_s / memory_s)
            self._seconds = self._seconds * decay + passed_s
            self._num_done *= decay
        self._seen_s = now_s

    def add(self, amount: float) -> None:
        """Count work that was done just now."""
        self._num_done += amount

    def seconds_for(self, amount: float, *, least_done: float = 0.0) -> float | None:
        """How long so much work takes, or None where the rate is not known.

        `least_done` counts as done, where more is about to be.
        """
        if not self.is_known:
            return None
        if amount <= 0:
            return 0.0
        num_done = max(self._num_done, least_done)
        return amount * self._seconds / num_done if num_done else math.inf


class Backlog:
    """Work that waits for its turn, and how fast it is done.

    Attributes:
        num_waiting: of it, in any unit.
    """

    def __init__(self) -> None:
        self.num_waiting = 0
        self._rate = Rate()

    @property
    def retry_delay_s(self) -> float:
        """After how long a client should try again that finds too much waiting: until that is done."""
        return retry_delay_s(self._rate.seconds_for(self.num_waiting))

    def begin(self, amount: int, now_s: float) -> None:
        """So much more waits."""
        self._rate.pass_time(now_s, is_busy=self.num_waiting > 0)
        self.num_waiting += amount

    def end(self, amount: int, now_s: float) -> None:
        """So much was done."""
        self._rate.pass_time(now_s, is_busy=True)
        self._rate.add(amount)
        self.num_waiting -= amount


def retry_delay_s(wait_s: float | None) -> float:
    """After how long a client should try again whose work would wait for `wait_s`; None: nobody knows how long."""
    return UNKNOWN_DELAY_S if wait_s is None else min(max(wait_s, MIN_DELAY_S), MAX_DELAY_S)
