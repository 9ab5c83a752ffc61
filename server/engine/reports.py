"""A lane's reports in the making: what happened on it, for each front since the last report to it."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from dragoman.server.engine.api import (
    Event,
    Failed,
    FailureReason,
    Finished,
    GraphRun,
    LaneLoad,
    PrefixUse,
    Report,
    Started,
    Timeline,
    Tokens,
)
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.execution.prefix_cache import PrefixCache

__all__ = ["Reports"]

_MAX_GRAPH_RUNS = 256
"""Kept until there is an event to report, in steps that nobody hears anything of."""

_Front = TypeVar("_Front", bound=Hashable)


class Reports(Generic[_Front]):
    """Collects the events of a lane's sequences, and what is told once, to whichever front hears next."""

    def __init__(self, prefix_cache: PrefixCache | None) -> None:
        """`prefix_cache` is the lane's, if it has one."""
        self._prefix_cache = prefix_cache
        self._fronts: dict[_Front, None] = {}
        self._events: dict[_Front, list[Event]] = {}
        self._told_full: set[_Front] = set()  # fronts that know the lane as full
        self._told_rows: dict[_Front, int] = {}  # that were used and waited for, as each front knows
        self._graph_runs: list[GraphRun] = []
        self._num_failed_steps = 0

    def add_front(self, front: _Front) -> None:
        """A front has sequences here. Harmless when it is known."""
        self._fronts[front] = None

    def forget_front(self, front: _Front) -> None:
        """A front has gone: it is told nothing more."""
        self._fronts.pop(front, None)
        self._events.pop(front, None)
        self._told_full.discard(front)
        self._told_rows.pop(front, None)

    def start(self, sequence: LaneSequence) -> None:
        """A sequence has taken its first step."""
        assert sequence.started_s is not None
        assert sequence.first_token_s is not None
        self._add(
            sequence,
            Started(sequence.id, sequence.started_s, sequence.first_token_s, sequence.num_first_tokens),
        )

    def extend(self, sequence: LaneSequence) -> None:
        """A streamed sequence may have new tokens."""
        if token_ids := sequence.token_ids[sequence.num_told :]:
            sequence.num_told += len(token_ids)
            self._add(sequence, Tokens(sequence.id, token_ids))

    def tell_times(self, sequence: LaneSequence, timeline: Timeline) -> None:
        """What was computed for a sequence that is about to end."""
        self._add(sequence, timeline)

    def finish(self, sequence: LaneSequence) -> None:
        """A sequence has its result."""
        assert sequence.result is not None
        if sequence.is_streamed:
            self.extend(sequence)
        self._add(sequence, Finished(sequence.id, sequence.result.hypotheses))

    def fail(self, sequence: LaneSequence, reason: FailureReason, message: str) -> None:
        """A sequence ends without a result."""
        self._add(sequence, Failed(sequence.id, reason, message))

    def add_graph_run(self, run: GraphRun) -> None:
        """A graph ran."""
        self._graph_runs.append(run)

    def add_failed_step(self) -> None:
        """A step raised an error."""
        self._num_failed_steps += 1

    def take(self, load: LaneLoad, *, is_full: bool) -> list[tuple[_Front, Report]]:
        """A report to each front that has events, or takes the lane for much fuller than it is. Forgets what they say.

        A front without events is told when the lane is full no more, and whenever its load has fallen by half. Else
        the front would spare a lane for ever that other fronts have left.

        Args:
            load: of the lane now.
            is_full: whether it has room for nothing more.
        """
        num_rows = load.num_rows + load.num_waiting_rows
        for front, told in self._told_rows.items():
            if 2 * num_rows <= told or (not is_full and front in self._told_full):
                self._events.setdefault(front, [])
        if len(self._graph_runs) >= _MAX_GRAPH_RUNS and self._fronts:
            self._events.setdefault(next(iter(self._fronts)), [])
        if not self._events:
            return []
        told_once = self._graph_runs, self._prefix_use(), self._num_failed_steps
        self._graph_runs, self._num_failed_steps = [], 0
        reports: list[tuple[_Front, Report]] = []
        for front, events in self._events.items():
            graph_runs, prefix, num_failed_steps = told_once
            reports.append((front, Report(events, graph_runs, load, prefix, num_failed_steps)))
            told_once = [], None, 0
            (self._told_full.add if is_full else self._told_full.discard)(front)
            if num_rows:
                self._told_rows[front] = num_rows
            else:
                self._told_rows.pop(front, None)
        self._events = {}
        return reports

    def _add(self, sequence: LaneSequence, event: Event) -> None:
        if sequence.front in self._fronts:
            self._events.setdefault(sequence.front, []).append(event)

    def _prefix_use(self) -> PrefixUse | None:
        cache = self._prefix_cache
        return None if cache is None else PrefixUse(*cache.take_counts(), cache.num_bytes)
