"""The trace of the call that runs now, if it is sampled.

This module knows no OpenTelemetry: that is imported where tracing is on.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from dragoman.server.engine.client import MAX_TIMELINES
from dragoman.server.requests.current_call import current_trace

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from dragoman.server.engine.ticket import Ticket
    from dragoman.server.operations.metrics import Exemplar
    from dragoman.server.operations.spans import CallSpans

__all__ = ["current_exemplar", "timed", "trace_sequences"]

_NOT_TRACED = contextlib.nullcontext()


def timed(name: str) -> AbstractContextManager[object]:
    """A span around a part of the call, if the call is traced."""
    trace = current_trace()
    return _NOT_TRACED if trace is None else _Timed(trace, name)


def current_exemplar() -> Exemplar | None:
    """The exemplar of what is measured for this call now, if the call is traced."""
    trace = current_trace()
    return None if trace is None else trace.exemplar


def trace_sequences(trace: CallSpans, tickets: Iterable[Ticket]) -> None:
    """Add what happened to sequences in the queue and on a lane, by the times that their tickets have."""
    for index, ticket in enumerate(itertools.islice(tickets, MAX_TIMELINES)):
        number = {"sequence": index}
        if ticket.admitted_s is None:
            if ticket.finished_s is not None:  # it never ran
                trace.add("queue", ticket.submitted_s, ticket.finished_s, number)
            continue
        trace.add("queue", ticket.submitted_s, ticket.admitted_s, number)
        timeline = ticket.timeline
        if timeline is None:
            continue
        began_s = ticket.admitted_s
        if (run := timeline.encoding) is not None:
            trace.add(run.graph, run.started_s, run.ended_s, {**number, "rows": run.num_rows})
            began_s = max(began_s, run.ended_s)
        if timeline.ended_s is None:
            continue
        decoding = trace.add("decode", began_s, timeline.ended_s, {**number, "steps": timeline.num_steps})
        for step in timeline.steps:
            attributes: dict[str, str | int] = {"step": step.step, "graph": step.graph, "rows": step.num_rows}
            trace.add("step", step.started_s, step.ended_s, attributes, decoding)


class _Timed(AbstractContextManager[None]):
    def __init__(self, trace: CallSpans, name: str) -> None:
        self._trace, self._name = trace, name
        self._started_s = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._trace.add(self._name, self._started_s, time.monotonic())
