"""How long a lane may give no sign of life before it is taken to be stuck."""

from collections.abc import Iterable

__all__ = ["NUM_LOOKS", "patience_s"]

NUM_LOOKS = 12
"""A lane is looked at so often in its time. What is counted is the times looked at, not the time: the process that
looks may have been stopped itself."""
RUNS_A_SIGN = 10
"""A lane gives signs between two turns. A turn runs a few graphs, one after the other, perhaps beside other processes
that want the core. A graph's slowest run was measured at its limits, when the model was loaded."""


def patience_s(watchdog_s: float, slowest_runs_s: Iterable[float]) -> float:
    """Seconds for a lane that has models whose graphs took `slowest_runs_s`: as set, or more where those need it."""
    return max(watchdog_s, RUNS_A_SIGN * max(slowest_runs_s, default=0.0))
