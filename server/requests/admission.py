"""Whether a call that arrives can still be answered in time: no work is begun whose caller will have left.

A server that takes every call answers none of them in time once more arrive than it can answer: each one waits until
shortly before its deadline and ends while it is computed. So a call is refused at once, with a delay after which the
client tries again, when waiting for its model's slots takes too much of its time.

Calls without a deadline are never refused here. Pure bookkeeping: the time is handed in.
"""

import math
from typing import NamedTuple

from dragoman.server.engine.rate import MEMORY_S, Rate, retry_delay_s
from dragoman.server.priority import DEFAULT_WEIGHTS, Priority, Weights

__all__ = ["STALE_S", "Load", "Size"]

MAX_SHARE = 0.6
"""Share of its time after which a call may be expected to be answered. The rest is for what the expectation misses.

Under twelve of fourteen simulated loads (`python -m benchmarks.admission_share`) goodput is within 3 % of the peak of
the best share. 0.4 loses a fifth where deadlines are tight, and with 1 up to a quarter of the calls are late."""
BUSY_SHARE = 0.5
"""Share of the slots from which on the rate of answers is believed. Below it, a call is always taken: it shows the rate
again when a stall has spoilt it."""
MAX_MEMORY_S = 5.0
"""The rate of answers is remembered for the time in which all slots are answered once, and for no longer than this: a
slow model has too few answers in half a second to tell its rate by."""
STALE_S = 1.0
"""After so long without a call that shows the rate, a call of any number of sequences is taken where those before it
leave that share of the slots free: otherwise a stall would have calls of many sequences refused for ever."""


class Size(NamedTuple):
    """The size of a call: sequences, which need a slot each, and tokens of its inputs, as far as they are known."""

    rows: int = 1
    tokens: int = 0


class Load:
    """Calls of one model, and how much of them is answered in a second while all slots can be in use.

    Attributes:
        num_slots: sequences that are decoded at one time.
    """

    def __init__(self, num_slots: int, weights: Weights = DEFAULT_WEIGHTS) -> None:
        """Priorities share the `num_slots` by `weights`."""
        self.num_slots = num_slots
        self._weights = weights
        self._rows = dict.fromkeys(Priority, 0)
        self._tokens = dict.fromkeys(Priority, 0)
        self._num_rows = 0
        self._row_rate, self._token_rate = Rate(), Rate()
        self._num_answered_rows = 0
        self._last_busy_s = -math.inf

    def delay(
        self,
        remaining_s: float,
        now_s: float,
        size: Size = Size(),  # noqa: B008  immutable
        priority: Priority = Priority.NORMAL,
    ) -> float | None:
        """How long a call that is `remaining_s` before its deadline should wait before another try, or None to take it.

        Its wait for slots is what is served before its last sequence starts, divided by the rate of answers: by
        sequences or by tokens, whichever takes longer. Then it is computed beside all that has a slot, which takes as
        long as so many answers do (Little's law).
        """
        self._pass(now_s)
        if math.isinf(remaining_s) or self._shows_rate(size, now_s):
            return None
        rows, tokens = self._before(size, priority)
        # In the first turn the answers of all slots may be about to come, together: the rate is that or less.
        is_first_turn = self._num_answered_rows < self.num_slots
        least_done = self.num_slots if is_first_turn else 0
        wait_s = self._row_rate.seconds_for(rows, least_done=least_done)
        if wait_s is None:
            return None
        num_beside = min(self._num_rows + size.rows, self.num_slots)
        computing_s = self._row_rate.seconds_for(num_beside, least_done=least_done) or 0.0
        if not is_first_turn:
            wait_s = max(wait_s, self._token_rate.seconds_for(tokens) or 0.0)
        expected_s = wait_s + computing_s
        return (
            None
            if expected_s <= MAX_SHARE * remaining_s
            else retry_delay_s(max(wait_s, expected_s - remaining_s))
        )

    def begin(
        self,
        now_s: float,
        size: Size = Size(),  # noqa: B008
        priority: Priority = Priority.NORMAL,
    ) -> None:
        """Count a call that was taken."""
        self._pass(now_s)
        self._add(size, priority, 1)

    def end(
        self,
        now_s: float,
        *,
        answered: bool,
        size: Size = Size(),  # noqa: B008
        priority: Priority = Priority.NORMAL,
    ) -> None:
        """Count the end of a call. Only answers say how fast the model is."""
        self._pass(now_s)
        if answered and self._num_rows >= BUSY_SHARE * self.num_slots:
            self._row_rate.add(size.rows)
            self._token_rate.add(size.tokens)
            self._num_answered_rows += size.rows
        self._add(size, priority, -1)

    def _before(self, size: Size, priority: Priority) -> tuple[float, float]:
        """Return the rows and the tokens that are served until the last row of such a call starts, its own included.

        While a class has its rows served, another one has no more served than its weight allows.
        """
        num_waiting = max(0, self._num_rows - self.num_slots)
        share = (
            num_waiting / self._num_rows if self._num_rows else 0.0
        )  # of each class, as far as that is known
        num_free = max(0, self.num_slots - self._num_rows)
        rows = mine = self._rows[priority] * share + size.rows - num_free
        tokens = self._tokens[priority] * share + size.tokens
        for other in Priority:
            theirs = self._rows[other] * share
            if other is priority or not theirs:
                continue
            served = min(theirs, mine * self._weights[other] / self._weights[priority])
            rows += served
            tokens += self._tokens[other] * share * served / theirs
        return rows, tokens

    def _shows_rate(self, size: Size, now_s: float) -> bool:
        """Whether such a call is taken for what its answer says about the rate, whatever the rate seems to be."""
        num_free = BUSY_SHARE * self.num_slots - self._num_rows
        return size.rows <= num_free or (num_free > 0 and now_s - self._last_busy_s >= STALE_S)

    def _add(self, size: Size, priority: Priority, sign: int) -> None:
        self._num_rows += sign * size.rows
        self._rows[priority] += sign * size.rows
        self._tokens[priority] += sign * size.tokens

    def _pass(self, now_s: float) -> None:
        """Let time pass until `now_s`."""
        is_busy = self._num_rows >= BUSY_SHARE * self.num_slots
        if is_busy:
            self._last_busy_s = now_s
        turn_s = self._row_rate.seconds_for(self.num_slots) or 0.0
        memory_s = min(max(MEMORY_S, turn_s), MAX_MEMORY_S)
        self._row_rate.pass_time(now_s, is_busy=is_busy, memory_s=memory_s)
        self._token_rate.pass_time(now_s, is_busy=is_busy, memory_s=memory_s)
