"""A front's side of the engine: sequences in, tickets out, on one event loop.

The client holds what waits, and gives each lane what that has room for (`server/engine/dispatcher.py`). A transport
(`server/engine/threads.py`, `server/engine/processes/`) brings the lanes' reports, and adds and removes lanes.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dragoman.server.config import EngineSettings
from dragoman.server.decoding.cost import step_cost
from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine import dispatcher
from dragoman.server.engine.api import (
    Cancel,
    Command,
    EngineFacts,
    Event,
    Failed,
    FailureReason,
    Finished,
    GraphRun,
    Report,
    Request,
    Started,
    Submit,
    Timeline,
    Tokens,
)
from dragoman.server.engine.beginnings import Beginnings
from dragoman.server.engine.dispatcher import Dispatcher, QueueFullError
from dragoman.server.engine.known_lane import LaneUse
from dragoman.server.engine.observation import EngineObserver, Occupancy, PrefixTotals
from dragoman.server.engine.rate import Rate, retry_delay_s
from dragoman.server.engine.ticket import Ticket
from dragoman.server.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    Overloaded,
    RequestError,
)
from dragoman.server.priority import Priority

__all__ = ["EngineClient", "LaneLink"]

MAX_TIMELINES = 16
"""Sequences of one call that are traced: a call may have a thousand."""
_EXPIRY_INTERVAL_S = 0.02
"""How often deadlines of what waits are looked at. A lane looks at those of what it has before each step."""


class LaneLink(Protocol):
    """The way to a lane. Its reports go to `EngineClient.receive`, on the client's event loop."""

    def send(self, command: Command) -> None:
        """Hand over a command; returns at once. Where the lane has gone, `EngineClient.remove_lane` is called."""


@dataclass(eq=False, slots=True, kw_only=True)
class _FrontSequence(dispatcher.Sequence):
    """A sequence that is not over: what the dispatcher knows of it, and the request to a lane."""

    ticket: Ticket
    call_id: int
    input_ids: Sequence[int]
    parameters: DecodingParameters
    is_streamed: bool
    step_interval: int

    def request(self) -> Request:
        return Request(
            self.ticket.id,
            self.call_id,
            self.input_ids,
            self.parameters,
            self.deadline_s,
            self.is_streamed,
            self.is_small,
            self.call.client,
            self.call.priority,
            self.step_interval,
        )


class EngineClient:
    """A model's lanes, for callers on one event loop: the one that submits first.

    Attributes:
        facts: of the lanes.
        max_rows: rows that all inputs of a call may have at most: as many as can run and wait at a time.
        bounds_tokens: whether `check_room` asks for tokens, too.
        prefix: what the lanes reused of prompts.
    """

    def __init__(
        self, facts: EngineFacts, settings: EngineSettings, observer: EngineObserver | None = None
    ) -> None:
        """A client without lanes: a transport adds them.

        Args:
            facts: of the lanes.
            settings: of the engine.
            observer: gets what the lanes compute.
        """
        self.facts = facts
        self.max_rows = facts.num_lanes * facts.slots_per_lane + settings.max_waiting
        self.bounds_tokens = settings.max_waiting_tokens > 0
        self.prefix = PrefixTotals(is_shared=facts.shares_prefix_cache)
        self._dispatcher = Dispatcher(
            0,
            facts.slots_per_lane,
            settings.max_waiting,
            reserved_rows=facts.reserved_rows,
            max_step_cost=facts.max_step_cost,
            max_waiting_tokens=settings.max_waiting_tokens,
            weights=settings.priority_weights,
        )
        self._observer = observer
        self._links: dict[int, LaneLink] = {}
        self._retiring: dict[int, Callable[[], object]] = {}  # by lane: called when nothing is left there
        self._pending: dict[int, _FrontSequence] = {}
        # Where lanes have caches of their own, a prompt had best go where one like it went.
        has_caches = facts.max_prefix_blocks and not facts.shares_prefix_cache
        self._beginnings = Beginnings() if has_caches else None
        self._rate = Rate()  # of rows that lanes are given while others wait
        self._was_waiting = False
        self._ids = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed_because = ""

    def submit(
        self,
        input_ids: Sequence[int],
        parameters: DecodingParameters,
        *,
        deadline_s: float | None = None,
        is_streamed: bool = False,
    ) -> Ticket:
        """Queue one sequence as a call of its own; see `submit_all`."""
        [ticket] = self.submit_all([(input_ids, parameters)], deadline_s=deadline_s, is_streamed=is_streamed)
        return ticket

    def submit_all(
        self,
        inputs: Sequence[tuple[Sequence[int], DecodingParameters]],
        *,
        deadline_s: float | None = None,
        is_streamed: bool = False,
        client: str = "",
        priority: Priority = Priority.NORMAL,
        step_interval: int = 0,
    ) -> list[Ticket]:
        """Queue the sequences of one call, all of them or none. Call from the client's event loop.

        Args:
            inputs: what `tokenizer.json` makes of each text, special tokens included, and how to decode it.
            deadline_s: on `time.monotonic()`; sequences are dropped when it passes.
            is_streamed: whether the tickets will be iterated.
            client: whose call it is: clients take turns.
            priority: of the call.
            step_interval: the tickets of the first sequences get a `timeline` with each so many-th step; 0: none does.

        Raises:
            Overloaded: too many sequences wait already.
            EngineUnavailable: the engine is closed.
        """
        self._bind()
        now_s, call_id = time.monotonic(), next(self._ids)
        call = dispatcher.Call(client=client, priority=priority)
        pending = [
            _FrontSequence(
                num_input_tokens=len(input_ids),
                deadline_s=deadline_s,
                num_rows=parameters.beam_size,
                call=call,
                cost=step_cost(parameters, self.facts.vocabulary_size),
                ticket=Ticket(self.cancel, next(self._ids), now_s, is_streamed=is_streamed),
                call_id=call_id,
                input_ids=input_ids,
                parameters=parameters,
                is_streamed=is_streamed,
                step_interval=step_interval if place < MAX_TIMELINES else 0,
                preferred_lane=-1 if self._beginnings is None else self._beginnings.lane_of(input_ids),
            )
            for place, (input_ids, parameters) in enumerate(inputs)
        ]
        try:
            self._dispatcher.submit(*pending)
        except QueueFullError:
            raise self._overloaded() from None
        self._pending |= ((each.ticket.id, each) for each in pending)
        self._dispatch()
        return [each.ticket for each in pending]

    def check_room(
        self, num_rows: int, num_tokens: int = 0, *, client: str = "", priority: Priority = Priority.NORMAL
    ) -> None:
        """Refuse a call of so many rows where `submit_all` would now, before anything is done for it.

        `num_tokens` is what its inputs have at most, once for each sequence.

        Raises:
            Overloaded: too many sequences wait already.
            EngineUnavailable: the engine is closed.
        """
        if self._closed_because:
            raise EngineUnavailable(self._closed_because)
        if not self._dispatcher.has_room(
            dispatcher.Call(client=client, priority=priority), num_rows, num_tokens
        ):
            raise self._overloaded()

    def cancel(self, *tickets: Ticket) -> None:
        """Free the rows of those that are not over before their lane's next step."""
        by_lane: dict[int, list[int]] = {}
        for ticket in tickets:
            pending = self._pending.get(ticket.id)
            if pending is None or pending.cancelled:
                continue
            if self._dispatcher.cancel(pending):
                self._settle(pending, Cancelled())
            else:
                by_lane.setdefault(pending.lane, []).append(ticket.id)
        for lane, ids in by_lane.items():
            self._links[lane].send(Cancel(ids))
        self._dispatch()

    def occupancy(self) -> Occupancy:
        """Rows and queue at this moment; may be asked from any thread."""
        plans = self._dispatcher
        return Occupancy(plans.num_used_slots, self.facts.num_slots, plans.num_running, plans.num_waiting)

    def oldest_waiting_s(self) -> float:
        """How long the sequence has waited that waits longest; 0: none waits. May be asked from any thread."""
        for pending in list(self._pending.values()):  # in the order in which they came
            if pending.ticket.admitted_s is None and not pending.cancelled:
                return time.monotonic() - pending.ticket.submitted_s
        return 0.0

    def close(self, reason: str = "the engine was closed") -> None:
        """Take nothing more; what is not over fails with `EngineUnavailable`. May be called from any thread."""
        self._closed_because = self._closed_because or reason
        if self._loop is None:
            return
        if self._loop is _running_loop():
            self._fail_all()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no caller is left
                self._loop.call_soon_threadsafe(self._fail_all)

    def add_lane(self, lane: int, link: LaneLink, use: LaneUse | None = None) -> None:
        """A lane is there, with nothing of this model in it. For transports.

        Args:
            lane: its number; no other lane that this client ever had has it.
            link: the way to it.
            use: what the clients of all models share of the lane: a model that rests begins where least is.
        """
        if self._closed_because:
            return
        self._links[lane] = link
        self._dispatcher.add_lane(lane, use)
        if self._loop is not None:
            self._dispatch()

    def retire_lane(self, lane: int, on_empty: Callable[[], object]) -> None:
        """Give a lane nothing more. `on_empty` is called once nothing of this client is left there. For transports."""
        if lane not in self._links:
            on_empty()
            return
        self._dispatcher.retire_lane(lane)
        self._retiring[lane] = on_empty
        self._end_retirement(lane)

    def remove_lane(self, lane: int) -> None:
        """A lane has died: what had started there is lost, what had not waits again. For transports."""
        if self._links.pop(lane, None) is None:  # closed: all has failed already
            return
        self._retiring.pop(lane, None)
        self.prefix.forget(lane)
        for lost in self._dispatcher.remove_lane(lane):
            assert isinstance(lost, _FrontSequence)
            error = Cancelled() if lost.cancelled else EngineUnavailable("what computed this call has ended")
            self._settle(lost, error)
        self._dispatch()

    def receive(self, lane: int, report: Report) -> None:
        """Take a lane's report. For transports."""
        if lane not in self._links:
            return
        for event in report.events:
            pending = self._pending.get(event.id)
            if pending is not None:
                self._apply(pending, event)
        load = report.load
        self._dispatcher.set_load(lane, load.num_rows, load.num_waiting_rows)
        self._dispatch()
        self._observe(report.graph_runs, report.num_failed_steps)
        if report.prefix is not None:
            self.prefix.add(lane, report.prefix)
        if lane in self._retiring:
            self._end_retirement(lane)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of this client's callers; None until something is submitted."""
        return self._loop

    def _end_retirement(self, lane: int) -> None:
        if self._dispatcher.is_empty(lane):
            self._retiring.pop(lane)()

    def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        # Checked last: `close` sets the reason, perhaps in another thread, and then fails what this loop has.
        if self._closed_because:
            raise EngineUnavailable(self._closed_because)
        assert self._loop is loop, "a client is for one event loop"

    def _overloaded(self) -> Overloaded:
        """The refusal of a call that the queue has no room for: it comes again when what waits now has started."""
        wait_s = self._rate.seconds_for(self._dispatcher.num_queued_rows)
        return Overloaded(f"{self._dispatcher.num_waiting} inputs are waiting already", retry_delay_s(wait_s))

    def _apply(self, pending: _FrontSequence, event: Event) -> None:
        match event:
            case Started():
                self._dispatcher.start(pending)
                pending.ticket.start(event)
            case Tokens():
                pending.ticket.extend(event.token_ids)
            case Timeline():
                pending.ticket.timeline = event
            case Finished():
                self._dispatcher.finish(pending)
                self._settle(pending, Decoded(event.hypotheses))
            case Failed():
                self._dispatcher.finish(pending)
                self._settle(pending, _error(event))

    def _settle(self, pending: _FrontSequence, outcome: Decoded | RequestError) -> None:
        del self._pending[pending.ticket.id]
        pending.ticket.settle(outcome)

    def _dispatch(self) -> None:
        """Send lanes what they have room for, and see that deadlines of what waits are looked at."""
        by_lane: dict[int, list[Request]] = {}
        num_rows = 0
        for sequence, lane in self._dispatcher.dispatch():
            assert isinstance(sequence, _FrontSequence)
            num_rows += sequence.num_rows
            by_lane.setdefault(lane, []).append(sequence.request())
            if self._beginnings is not None:
                self._beginnings.note(sequence.input_ids, lane)
        for lane, requests in by_lane.items():
            self._links[lane].send(Submit(requests))
        if self._dispatcher.num_queued_rows or self._was_waiting:
            self._rate.pass_time(time.monotonic(), is_busy=self._was_waiting)
            self._rate.add(num_rows)
            self._was_waiting = self._dispatcher.num_queued_rows > 0
        if self._timer is None and self._dispatcher.num_waiting and self._loop is not None:
            self._timer = self._loop.call_later(_EXPIRY_INTERVAL_S, self._expire)

    def _expire(self) -> None:
        self._timer = None
        for expired in self._dispatcher.expire(time.monotonic()):
            assert isinstance(expired, _FrontSequence)
            self._settle(expired, DeadlineExceeded())
        self._dispatch()

    def _observe(self, graph_runs: Sequence[GraphRun], num_failed_steps: int) -> None:
        if self._observer is None:
            return
        for run in graph_runs:
            self._observer.observe_step(run.graph, run.seconds, run.num_rows)
        if num_failed_steps:
            self._observer.observe_failed_steps(num_failed_steps)

    def _fail_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        retiring = list(self._retiring.values())
        self._retiring.clear()
        left = list(self._pending.values())
        self._links.clear()  # nothing is sent any more, and no report is taken
        for pending in left:
            if not self._dispatcher.cancel(pending):
                self._dispatcher.finish(pending)
            self._settle(pending, EngineUnavailable(self._closed_because))
        for on_empty in retiring:
            on_empty()


def _error(event: Failed) -> RequestError:
    match event.reason:
        case FailureReason.CANCELLED:
            return Cancelled()
        case FailureReason.DEADLINE:
            return DeadlineExceeded()
        case FailureReason.LOST:
            return EngineUnavailable(event.message)
        case FailureReason.ERROR:
            return EngineError(event.message)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
