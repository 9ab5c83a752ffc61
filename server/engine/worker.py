"""A model's worker on a lane: take commands, plan, compute a step, report.

    obey commands -> scheduler.plan -> lane.execute -> one report to each front that has events

Whatever fails in a step fails the sequences that take part in it, and nothing else.
"""

import contextlib
import functools
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import structlog

from dragoman.common.errors import DragomanError
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.cost import step_cost
from dragoman.server.decoding.joining import UnknownDecoderError
from dragoman.server.engine.api import (
    Cancel,
    Command,
    EngineFacts,
    FailureReason,
    GraphRun,
    LaneLoad,
    Leave,
    Report,
    Request,
    Submit,
)
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.layout import engine_facts
from dragoman.server.engine.reports import Reports
from dragoman.server.engine.scheduler import (
    ENCODE_TOGETHER,
    MAX_START_INTERVAL,
    MAX_START_TOKENS,
    MAX_START_TOKENS_ON_DEVICE,
    Call,
    Departure,
    Plan,
    Scheduler,
)
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.engine.timelines import Timelines
from dragoman.server.execution.backend import Backend

__all__ = ["LaneBroken", "LaneWorker", "facts_of", "make_lane", "prepared"]

MAX_FAILED_STEPS = 16
"""One after the other, after which a lane is taken to be broken."""

_REASONS = {Departure.CANCELLED: FailureReason.CANCELLED, Departure.EXPIRED: FailureReason.DEADLINE}

_Front = TypeVar("_Front", bound=Hashable)

_log = structlog.get_logger(__name__)


class _Call(Call):
    """A call that is known while any of its sequences is."""

    __slots__ = ("__weakref__",)


class LaneBroken(DragomanError):
    """Every step of a lane fails."""


class LaneWorker(Generic[_Front]):
    """Drives a model's rows on a lane with the commands that it is given; a `lane_loop.Worker`.

    Args:
        lane: computes.
        scheduler: of these rows alone.
        send: reports to a front. Where that has gone, a `Leave` of it follows.
        model: for the log.
        max_failed_steps: in a row, after which the lane is given up.
    """

    def __init__(
        self,
        lane: Lane,
        scheduler: Scheduler,
        send: Callable[[_Front, Report], object],
        *,
        model: str = "",
        max_failed_steps: int = MAX_FAILED_STEPS,
    ) -> None:
        self._lane = lane
        self._reports: Reports[_Front] = Reports(lane.prefix_cache)
        self._timelines = Timelines()
        # Not by a method of this worker: with references in a circle, rows would not be free once it is dropped.
        lane.observe = functools.partial(_observe, self._reports, self._timelines)
        self._scheduler = scheduler
        self._send = send
        self._model = model
        self._max_failed_steps = max_failed_steps
        self._num_failed_in_a_row = 0
        self._sequences: dict[_Front, dict[int, LaneSequence]] = {}  # by front and id
        self._calls: weakref.WeakValueDictionary[tuple[_Front, int], _Call] = weakref.WeakValueDictionary()

    @property
    def has_work(self) -> bool:
        """Whether anything runs, waits, or is to be aligned."""
        return self._scheduler.has_work or bool(self._lane.alignments)

    def take_turn(self) -> None:
        """Take a step and report.

        Raises:
            LaneBroken: every step fails.
        """
        self._step()
        self._report()
        if self._num_failed_in_a_row >= self._max_failed_steps:
            raise LaneBroken(f"{self._num_failed_in_a_row} steps failed one after the other")

    def obey(self, front: _Front, command: Command) -> None:
        """Take a command of a front. A turn follows."""
        match command:
            case Submit(requests):
                for request in requests:
                    self._submit(front, request)
            case Cancel(ids):
                known = self._sequences.get(front, {})
                for id_ in ids:
                    if (sequence := known.get(id_)) is not None:
                        self._cancel(sequence)
            case Leave():
                self._reports.forget_front(front)
                for sequence in self._sequences.pop(front, {}).values():
                    sequence.front = None  # it may come again with the same ids, and hears of those alone
                    self._cancel(sequence)

    def _submit(self, front: _Front, request: Request) -> None:
        key = front, request.call_id
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _Call(client=request.client, priority=request.priority)
        sequence = LaneSequence.create(
            request.input_ids,
            request.parameters,
            deadline_s=request.deadline_s,
            call=call,
            cost=step_cost(request.parameters, self._lane.vocabulary_size),
        )
        sequence.id, sequence.front = request.id, front
        sequence.is_streamed, sequence.is_small = request.is_streamed, request.is_small
        if request.step_interval:
            self._timelines.add(sequence, request.step_interval)
        self._reports.add_front(front)
        self._sequences.setdefault(front, {})[request.id] = sequence
        self._scheduler.submit(sequence)

    def _cancel(self, sequence: LaneSequence) -> None:
        if sequence.has_ended:
            self._lane.alignments.drop(sequence)
        elif not self._scheduler.cancel(sequence):
            return  # the next plan drops it
        self._fail(sequence, FailureReason.CANCELLED)

    def _step(self) -> None:
        now_s = time.monotonic()
        plan = self._scheduler.plan(now_s, self._lane.num_steps_taken)
        for dropped, departure in plan.dropped:
            assert isinstance(dropped, LaneSequence)
            self._fail(dropped, _REASONS[departure])
        try:
            progressed = self._lane.execute(plan)
        except BaseException as error:  # noqa: BLE001  whatever it is, also a panic of native code: the lane goes on
            self._end_failed_step(plan, error)
        else:
            self._end_step(plan, progressed)
        self._align(now_s)

    def _end_step(self, plan: Plan, progressed: Sequence[LaneSequence]) -> None:
        if self._timelines:
            self._timelines.end_step()
        if plan.num_rows:
            self._num_failed_in_a_row = 0
        for started, _ in plan.starts:
            assert isinstance(started, LaneSequence)
            self._reports.start(started)
        for sequence in progressed:
            if sequence.has_ended:
                self._scheduler.finish(sequence)
                if sequence.result is not None:
                    self._finish(sequence)
            elif sequence.is_streamed:
                self._reports.extend(sequence)

    def _end_failed_step(self, plan: Plan, error: BaseException) -> None:
        """Fail the sequences of the step, but for those that had come to their end before the error."""
        _log.exception("step_failed", model=self._model, rows=plan.num_rows)
        self._reports.add_failed_step()
        self._num_failed_in_a_row += 1
        if self._timelines:
            self._timelines.end_step()
        self._lane.clear()
        for sequence in self._scheduler.evict():
            assert isinstance(sequence, LaneSequence)
            if sequence.has_ended and sequence.first_token_s is None:  # in its first step, which was this one
                sequence.first_token_s = time.monotonic()
                self._reports.start(sequence)
            if sequence.result is not None:
                self._finish(sequence)
            elif not sequence.has_ended:
                self._fail(sequence, FailureReason.ERROR, f"a step failed: {type(error).__name__}")

    def _align(self, now_s: float) -> None:
        alignments = self._lane.alignments
        if not alignments:
            return
        for sequence in alignments.drop_expired(now_s):
            self._fail(sequence, FailureReason.DEADLINE)
        for sequence, error in alignments.run():
            if error is None:
                self._finish(sequence)
            else:
                _log.error("alignment_failed", model=self._model, exc_info=error)
                self._fail(sequence, FailureReason.ERROR, f"an alignment failed: {type(error).__name__}")

    def _finish(self, sequence: LaneSequence) -> None:
        self._report_timeline(sequence)
        self._reports.finish(sequence)
        self._forget(sequence)

    def _fail(self, sequence: LaneSequence, reason: FailureReason, message: str = "") -> None:
        self._report_timeline(sequence)
        self._reports.fail(sequence, reason, message)
        self._forget(sequence)

    def _report_timeline(self, sequence: LaneSequence) -> None:
        if (timeline := self._timelines.take(sequence)) is not None:
            self._reports.add_timeline(sequence, timeline)

    def _forget(self, sequence: LaneSequence) -> None:
        self._sequences.get(sequence.front, {}).pop(sequence.id, None)

    def _report(self) -> None:
        load = LaneLoad(self._scheduler.num_used_rows, self._scheduler.num_waiting_rows)
        is_full = load.num_rows + load.num_waiting_rows >= self._scheduler.num_slots
        for front, report in self._reports.take(load, is_full=is_full):
            self._send(front, report)


def _observe(reports: Reports[Any], timelines: Timelines, run: GraphRun) -> None:
    reports.add_graph_run(run)
    if timelines:
        timelines.observe(run)


def prepared(backend: Backend, prefix_cache_bytes: int) -> Backend:
    """A backend for lanes: with a prefix cache, and with its vocabulary laid out once for all of them."""
    backend = backend.with_prefix_cache(prefix_cache_bytes)
    with contextlib.suppress(UnknownDecoderError):  # callers are told who ask for what needs it
        # 2 us a token, now rather than in a step. It takes less than the trial of the graphs.
        _ = backend.vocabulary
    return backend


def facts_of(backend: Backend, settings: EngineSettings, *, load_s: float = 0.0) -> EngineFacts:
    """What a front is told of the lanes that such settings give a backend, which took `load_s` to load."""
    return engine_facts(
        backend.bundle.manifest,
        settings,
        kernels=backend.kernels,
        max_prefix_blocks=backend.prefix_cache.max_blocks,
        load_s=load_s,
        slowest_run_s=backend.slowest_run_s,
    )


def make_lane(backend: Backend, settings: EngineSettings) -> tuple[Lane, Scheduler]:
    """A lane with its rows, and what plans its steps.

    Raises:
        ResourceUnavailable: there is no memory for the rows.
    """
    facts = facts_of(backend, settings)
    num_rows = facts.slots_per_lane + facts.reserved_rows
    lane = Lane(backend, num_rows)
    # Prompts are read one by one, so nothing is gained by starting several at once.
    starts_together = backend.bundle.manifest.facts.has_source
    scheduler = Scheduler(
        facts.slots_per_lane,
        max_start_tokens=MAX_START_TOKENS if settings.provider == "cpu" else MAX_START_TOKENS_ON_DEVICE,
        max_start_interval=MAX_START_INTERVAL if starts_together else 1,
        encode_together=ENCODE_TOGETHER if lane.rows.encodes_ahead else 1,
        reserved_rows=facts.reserved_rows,
        max_step_cost=facts.max_step_cost,
        weights=settings.priority_weights,
    )
    return lane, scheduler
