"""Whether a call that arrives can still be answered in time: no work is begun whose caller will have left.

A server that takes every call answers none of them in time once more arrive than it can answer: each one waits until
shortly before its deadline and ends while it is computed. So a call is refused at once, with a delay after which the
client tries again, when waiting for one of its model's slots takes too much of its time.

Calls without a deadline are never refused here. Pure bookkeeping: the time is handed in.
"""

import math

__all__ = ["Load"]

MIN_DELAY_S, MAX_DELAY_S = 0.1, 5.0
"""Bounds of the delay after which a refused client tries again."""

MAX_SHARE = 0.5
"""Share of its time that a call may be expected to wait for a slot. The rest is for being computed."""
MEMORY_S = 0.5
"""How fast the rate of answers is forgotten, in seconds of full load."""


class Load:
    """Calls of one model, and how many of them are answered in a second while all slots can be in use.

    Attributes:
        num_slots: sequences that are decoded at one time.
    """

    def __init__(self, num_slots: int) -> None:
        """`num_slots` sequences are decoded at one time."""
        self.num_slots = num_slots
        self._num_calls = 0
        # Both decay together. Their quotient is the rate; only times in which all slots can be in use count.
        self._num_answered = 0.0
        self._seconds = 0.0
        self._seen_s = 0.0
        self._num_answered_ever = 0

    def delay(self, remaining_s: float, now_s: float) -> float | None:
        """How long a call that is `remaining_s` before its deadline should wait before another try, or None to take it.

        Its wait for a slot is the calls before it divided by the rate at which calls are answered.
        """
        self._pass(now_s)
        num_before = self._num_calls - self.num_slots + 1
        if num_before <= 0 or self._seconds < MEMORY_S / 10:  # the rate is not known yet
            return None
        # In the first turn the answers of all slots may be about to come, together: the rate is that or less.
        is_first_turn = self._num_answered_ever < self.num_slots
        num_answered = max(self._num_answered, self.num_slots) if is_first_turn else self._num_answered
        wait_s = num_before * self._seconds / num_answered if num_answered else math.inf
        return None if wait_s <= MAX_SHARE * remaining_s else _bounded(wait_s)

    def begin(self, now_s: float) -> None:
        """Count a call that was taken."""
        self._pass(now_s)
        self._num_calls += 1

    def end(self, now_s: float, *, answered: bool) -> None:
        """Count the end of a call. Only answers say how fast the model is."""
        self._pass(now_s)
        if answered and self._num_calls >= self.num_slots:
            self._num_answered += 1
            self._num_answered_ever += 1
        self._num_calls -= 1

    def _pass(self, now_s: float) -> None:
        """Let time pass until `now_s`."""
        if self._num_calls >= self.num_slots:
            passed_s = now_s - self._seen_s
            decay = math.exp(-passed_s / MEMORY_S)
            self._seconds = self._seconds * decay + passed_s
            self._num_answered *= decay
        self._seen_s = now_s


def _bounded(delay_s: float) -> float:
    return min(max(delay_s, MIN_DELAY_S), MAX_DELAY_S)
