"""Where the server stands between its start and its end."""

from enum import StrEnum

__all__ = ["CONDITIONS", "Lifecycle", "Phase"]


class Phase(StrEnum):
    """The phase of a server: it says what happens to a new call.

    Readiness is true in SERVING only. DRAINING still answers: balancers need time to look elsewhere.
    """

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


CONDITIONS = (*(phase.value for phase in Phase), "failing", "stuck")
"""The values of `Lifecycle.condition`."""


class Lifecycle:
    """The phase and what is wrong, written by those that know and read from any thread.

    Attributes:
        phase: written by the composition root.
        is_failing: parts of the server die again and again (`operations/failure_history.py`).
        is_stuck: the event loop gives no sign of life (`operations/loop_watch.py`).
        is_alive: whether the server may recover by itself; otherwise it should be started anew.
    """

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.is_failing = False
        self.is_stuck = False
        self.is_alive = True

    @property
    def is_ready(self) -> bool:
        """Whether balancers should send calls here."""
        return self.phase is Phase.SERVING and not self.is_failing and not self.is_stuck

    @property
    def condition(self) -> str:
        """The phase, or why a server that serves is not ready."""
        if self.phase is not Phase.SERVING or self.is_ready:
            return self.phase
        return "stuck" if self.is_stuck else "failing"

    @property
    def accepts_calls(self) -> bool:
        """Whether a call that comes nevertheless is answered."""
        return self.phase in {Phase.SERVING, Phase.DRAINING}
