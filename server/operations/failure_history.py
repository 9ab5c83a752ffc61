"""Failing again and again: when a server is better sent no calls, and when it is better started anew.

A lane, an engine's host or a front that ends is replaced within milliseconds to seconds, and its calls are repeated by
their clients. So a few deaths are nothing that balancers need to know. Many mean that the cause is still there: a model
that crashes on ordinary inputs, a machine without memory, broken hardware.
"""

from collections import deque

__all__ = ["MIN_ALIVE", "MIN_READY", "WINDOW_ALIVE_S", "WINDOW_READY_S", "FailureHistory"]

MIN_READY = 8
"""So many deaths within `WINDOW_READY_S` turn readiness off, or twice as many as there are lanes, if those are more.
Fewer happen when one cause ends all lanes at once, and when one input that lanes die of is tried again."""
WINDOW_READY_S = 60.0
"""Readiness comes back when less than so many have happened in this time. Without calls most causes rest."""
MIN_ALIVE = 5 * MIN_READY
"""So many within `WINDOW_ALIVE_S`, or ten times the lanes, turn liveness off: readiness has then been off five times,
or parts die without any calls. An orchestrator starts the server anew, perhaps elsewhere."""
WINDOW_ALIVE_S = 600.0


class FailureHistory:
    """When parts of a server have died. The caller says the time. May be read from any thread."""

    def __init__(self, num_lanes: int = 1) -> None:
        """Keep the failures of a server with `num_lanes` lanes."""
        self._max_ready = max(MIN_READY, 2 * num_lanes)
        self._max_alive = max(MIN_ALIVE, 10 * num_lanes)
        self._times_s: deque[float] = deque(maxlen=self._max_alive)

    def add(self, now_s: float) -> None:
        """A part has died."""
        self._times_s.append(now_s)

    def is_ready(self, now_s: float) -> bool:
        """Whether few parts have died of late."""
        return self._num_since(now_s - WINDOW_READY_S) < self._max_ready

    def is_alive(self, now_s: float) -> bool:
        """Whether not so many have died that the server should be started anew."""
        return self._num_since(now_s - WINDOW_ALIVE_S) < self._max_alive

    def _num_since(self, begin_s: float) -> int:
        return sum(time_s > begin_s for time_s in tuple(self._times_s))
