"""Whether a call that arrives can still be answered in time: no work is begun that nobody will wait for.

A server that takes every call answers none of them in time once more arrive than it can answer: each one waits until
shortly before its deadline and ends while it is computed. So a call is refused at once, with a delay after which the
client tries again, when waiting takes too much of its time. There are two places where it waits:

    Backlog   in gRPC's core, until the event loop takes the call up
    Load      for one of its model's slots

Calls without a deadline are never refused here. Pure bookkeeping: times and counts are handed in.
"""

import math
from collections import deque
from collections.abc import Callable

__all__ = ["Backlog", "Load"]

MIN_DELAY_S, MAX_DELAY_S = 0.1, 5.0
"""Bounds of what a refused caller is told to wait."""

REMAINING_SHARE = 2.0
"""A call that waited to be taken up needs so many times its wait for the rest. So it may spend a third of its time."""
SAMPLE_S = 0.01
"""How often gRPC's count of calls is read at most. Reading it takes a tenth of a millisecond."""
MIN_BACKLOG = 32
"""Fewer calls that wait are no queue: they arrived together."""

MAX_SHARE = 0.5
"""Share of its time that a call may be expected to wait for a slot. The rest is for being computed."""
MEMORY_S = 0.5
"""How fast the rate of answers is forgotten, in seconds of full load."""


class Backlog:
    """How long calls wait in gRPC's core, which hands them over first come first served."""

    def __init__(self, count_started: Callable[[], int | None]) -> None:
        """`count_started` gives how many calls have arrived, or None when that is not known any more."""
        self._count_started = count_started
        self._samples: deque[tuple[float, int]] = deque()
        self._sampled_s = -math.inf
        self._num_dropped = 0  # calls that arrived and will never be taken up

    def delay(self, num_taken_up: int, remaining_s: float, now_s: float, *, is_alone: bool) -> float | None:
        """How long the call that was just taken up should wait before another try, or None to take it.

        Args:
            num_taken_up: calls taken up so far, this one included.
            remaining_s: until its deadline.
            now_s: the time.
            is_alone: whether no other call is in the server; then none can be waiting.
        """
        if now_s - self._sampled_s >= SAMPLE_S:
            self._sample(now_s, num_taken_up, is_alone=is_alone)
        waited_s = self._waited_s(num_taken_up + self._num_dropped, now_s)
        if remaining_s >= REMAINING_SHARE * waited_s:
            return None
        return _bounded(waited_s)

    def _sample(self, now_s: float, num_taken_up: int, *, is_alone: bool) -> None:
        self._sampled_s = now_s
        num_started = self._count_started()
        if num_started is None:
            return
        if is_alone:
            self._num_dropped = num_started - num_taken_up
        self._samples.append((now_s, num_started))

    def _waited_s(self, place: int, now_s: float) -> float:
        """How long ago the call in this place of all calls arrived."""
        samples = self._samples
        if not samples or samples[-1][1] - place < MIN_BACKLOG:
            samples.clear()
            return 0.0
        # When the second sample already had this call, nobody needs the first one again.
        while len(samples) > 1 and samples[0][1] < place:
            samples.popleft()
        return now_s - samples[0][0]


class Load:
    """Calls of one model, and how many of them are answered in a second while all slots can be in use."""

    def __init__(self, num_slots: int) -> None:
        """`num_slots` sequences are decoded at one time."""
        self._num_slots = num_slots
        self._num_calls = 0
        # Both decay together. Their quotient is the rate; only times in which all slots can be in use count.
        self._num_answered = 0.0
        self._seconds = 0.0
        self._seen_s = 0.0

    def delay(self, remaining_s: float, now_s: float) -> float | None:
        """How long a call that is `remaining_s` before its deadline should wait before another try, or None to take it.

        Its wait for a slot is the calls before it divided by the rate at which calls are answered.
        """
        self._pass(now_s)
        num_before = self._num_calls - self._num_slots + 1
        if num_before <= 0 or self._seconds < MEMORY_S / 10:  # the rate is not known yet
            return None
        wait_s = num_before * self._seconds / self._num_answered if self._num_answered else math.inf
        return None if wait_s <= MAX_SHARE * remaining_s else _bounded(wait_s)

    def begin(self, now_s: float) -> None:
        """Count a call that was taken."""
        self._pass(now_s)
        self._num_calls += 1

    def end(self, now_s: float, *, answered: bool) -> None:
        """Count the end of a call. Only answers say how fast the model is."""
        self._pass(now_s)
        self._num_answered += answered and self._num_calls >= self._num_slots
        self._num_calls -= 1

    def _pass(self, now_s: float) -> None:
        """Let time pass until `now_s`."""
        if self._num_calls >= self._num_slots:
            passed_s = now_s - self._seen_s
            decay = math.exp(-passed_s / MEMORY_S)
            self._seconds = self._seconds * decay + passed_s
            self._num_answered *= decay
        self._seen_s = now_s


def _bounded(delay_s: float) -> float:
    return min(max(delay_s, MIN_DELAY_S), MAX_DELAY_S)
