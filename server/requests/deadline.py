"""When a call's time is over, on the server's clock and on the client's."""

import math

__all__ = ["Deadline"]

ROUNDING = 0.01
"""gRPC rounds the timeout that it sends up, by a hundredth at most: a client gives up before the server expects it."""
TRANSIT_S = 0.05
"""How much earlier on the server's clock a client may give up: its headers took so much longer than its reset."""


class Deadline:
    """The deadline of one call.

    gRPC cancels a call whose deadline passed just as it does when the caller left. The deadline says which it was.

    Attributes:
        at_s: its moment on `time.monotonic()`; infinite for a call without a deadline.
    """

    __slots__ = ("_tolerance_s", "at_s")

    def __init__(self, started_s: float, remaining_s: float | None) -> None:
        """The call had `remaining_s` left when it started; None: it has no deadline."""
        self.at_s = math.inf if remaining_s is None else started_s + remaining_s
        self._tolerance_s = 0.0 if remaining_s is None else ROUNDING * remaining_s + TRANSIT_S

    def has_passed(self, now_s: float) -> bool:
        """Returns whether the deadline has passed on the server's clock."""
        return now_s >= self.at_s

    def may_have_passed(self, now_s: float) -> bool:
        """Returns whether the deadline has passed on the server's clock, or may have passed on the client's."""
        return now_s >= self.at_s - self._tolerance_s
