"""When a lane computed what for the sequences of traced calls. For all other sequences nothing is done."""

import time
from dataclasses import dataclass, field

from dragoman.server.engine.api import GraphRun, TimedRun, Timeline
from dragoman.server.engine.sequence import LaneSequence

__all__ = ["MAX_STEPS", "Timelines"]

MAX_STEPS = 64
"""Steps of one sequence that are told. Later ones are left out: a span each is 12 us of the front's time."""


@dataclass(slots=True)
class _Growing:
    """A timeline of a sequence that has not ended."""

    interval: int
    is_encoded: bool = False
    encoding: TimedRun | None = None
    steps: list[TimedRun] = field(default_factory=list)
    num_steps: int = 0
    ended_s: float | None = None
    is_over: bool = False

    def take_step(self, run: TimedRun) -> None:
        if self.num_steps % self.interval == 0 and len(self.steps) < MAX_STEPS:
            self.steps.append(TimedRun(run.graph, run.started_s, run.ended_s, run.num_rows, self.num_steps))
        self.num_steps += 1
        self.ended_s = run.ended_s


class Timelines:
    """The timelines of a lane. It is true while there are any: nothing need be told to it otherwise."""

    def __init__(self) -> None:
        self._growing: dict[LaneSequence, _Growing] = {}
        self._runs: list[TimedRun] = []  # of the step that runs now

    def __bool__(self) -> bool:
        return bool(self._growing)

    def add(self, sequence: LaneSequence, interval: int) -> None:
        """Keep the times of a sequence that begins to wait: of its encoding, and of each `interval`-th step."""
        self._growing[sequence] = _Growing(interval)

    def observe(self, run: GraphRun) -> None:
        """A run of a graph is over at this moment."""
        now_s = time.monotonic()
        self._runs.append(TimedRun(run.graph, now_s - run.seconds, now_s, run.num_rows))

    def end_step(self) -> None:
        """Give the runs since the last call to the sequences that took part in them.

        Call it once the lane has executed a plan, and before the sequences that end with it are taken.
        """
        runs = {run.graph: run for run in self._runs}
        self._runs.clear()
        runs.pop("align", None)
        # `decode_steps` may give way to `decode` within a step.
        steps = [run for graph, run in runs.items() if graph.startswith("decode")]
        starting = [run for graph, run in runs.items() if not graph.startswith("decode")]
        for sequence, timeline in self._growing.items():
            has_started = sequence.started_s is not None
            if not timeline.is_encoded and (has_started or sequence.is_encoded):
                timeline.is_encoded = True
                timeline.encoding = starting[0] if starting else None
            if has_started and steps and not timeline.is_over:
                timeline.take_step(steps[-1])
                timeline.is_over = sequence.has_ended

    def take(self, sequence: LaneSequence) -> Timeline | None:
        """The timeline of a sequence that ends now; None: its call is not traced."""
        timeline = self._growing.pop(sequence, None)
        if timeline is None:
            return None
        return Timeline(sequence.id, timeline.encoding, timeline.steps, timeline.num_steps, timeline.ended_s)
