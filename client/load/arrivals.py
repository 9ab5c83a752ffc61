"""When requests of an open loop are meant to be sent."""

import itertools
import random
from collections.abc import Iterator

__all__ = ["poisson_arrivals"]


def poisson_arrivals(rate: float, *, seed: int) -> Iterator[float]:
    """Endless arrival times in seconds from 0, `rate` a second on average.

    Independent users arrive as a Poisson process: the gaps are exponentially distributed.
    """
    gaps = random.Random(seed)  # noqa: S311  a load, no secret
    return itertools.accumulate(gaps.expovariate(rate) for _ in itertools.count())
