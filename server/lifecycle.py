"""Where the server stands between its start and its end."""

from enum import StrEnum

__all__ = ["Lifecycle", "Phase"]


class Phase(StrEnum):
    """What the server does with a new call.

    Readiness is true in SERVING only. DRAINING still answers: balancers need time to look elsewhere.
    """

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


class Lifecycle:
    """The phase, written by the composition root and read from any thread."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING

    @property
    def is_ready(self) -> bool:
        """Whether balancers should send calls here."""
        return self.phase is Phase.SERVING

    @property
    def accepts_calls(self) -> bool:
        """Whether a call that comes nevertheless is answered."""
        return self.phase in {Phase.SERVING, Phase.DRAINING}
