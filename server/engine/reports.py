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
"""Kept until there is an event to report, in steps without events."""

_Front = TypeVar("_Front", bound=Hashable)


class Reports(Generic[_Front]):
    """Collects the events of a lane's sequences for their fronts, and graph runs, which the next report alone has."""

    def __init__(self, prefix_cache: PrefixCache | None) -> None:
        """`prefix_cache` is the lane's, if it has one."""
        self._prefix_cache = prefix_cache
        self._fronts: dict[_Front, None] = {}
        self._events: dict[_Front, list[Event]] = {}
        self._reported_full: set[_Front] = set()  # fronts whose last report said that the lane is full
        self._reported_rows: dict[_Front, int] = {}  # used and waited for, in the last report to each front
        self._graph_runs: list[GraphRun] = []
        self._num_failed_steps = 0

    def add_front(self, front: _Front) -> None:
        """A front has sequences here. Harmless when it is known."""
        self._fronts[front] = None

    def forget_front(self, front: _Front) -> None:
        """A front has gone: it gets no more reports."""
        self._fronts.pop(front, None)
        self._events.pop(front, None)
        self._reported_full.discard(front)
        self._reported_rows.pop(front, None)

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
        if token_ids := sequence.token_ids[sequence.num_reported_tokens :]:
            sequence.num_reported_tokens += len(token_ids)
            self._add(sequence, Tokens(sequence.id, token_ids))

    def add_timeline(self, sequence: LaneSequence, timeline: Timeline) -> None:
        """Report what was computed for a sequence that is about to end."""
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
        """Returns a report for each front that has events, or that takes the lane for much fuller than it is.

        What a report has is forgotten here. A front without events gets one when the lane is full no more, and whenever
        the lane's load has fallen by half. Else the front would spare a lane for ever that other fronts have left.

        Args:
            load: of the lane now.
            is_full: whether it has room for nothing more.
        """
        num_rows = load.num_rows + load.num_waiting_rows
        for front, num_reported_rows in self._reported_rows.items():
            if 2 * num_rows <= num_reported_rows or (not is_full and front in self._reported_full):
                self._events.setdefault(front, [])
        if len(self._graph_runs) >= _MAX_GRAPH_RUNS and self._fronts:
            self._events.setdefault(next(iter(self._fronts)), [])
        if not self._events:
            return []
        unreported = self._graph_runs, self._prefix_use(), self._num_failed_steps
        self._graph_runs, self._num_failed_steps = [], 0
        reports: list[tuple[_Front, Report]] = []
        for front, events in self._events.items():
            graph_runs, prefix, num_failed_steps = unreported
            reports.append((front, Report(events, graph_runs, load, prefix, num_failed_steps)))
            unreported = [], None, 0
            (self._reported_full.add if is_full else self._reported_full.discard)(front)
            if num_rows:
                self._reported_rows[front] = num_rows
            else:
                self._reported_rows.pop(front, None)
        self._events = {}
        return reports

    def _add(self, sequence: LaneSequence, event: Event) -> None:
        if sequence.front in self._fronts:
            self._events.setdefault(sequence.front, []).append(event)

    def _prefix_use(self) -> PrefixUse | None:
        cache = self._prefix_cache
        return None if cache is None else PrefixUse(*cache.take_counts(), cache.num_bytes)
