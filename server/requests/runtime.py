"""Text in, answers out: the core of every service, free of any transport.

A call's life: refuse it or make inputs of its texts (`dragoman.server.requests.prepare`), submit each to the model's
engine, turn tokens into text (`dragoman.server.requests.answers`), and free whatever is still running when the
caller leaves.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.engine.ticket import Ticket
from dragoman.server.errors import Cancelled, DeadlineExceeded, Draining
from dragoman.server.lifecycle import Lifecycle
from dragoman.server.models.registry import Lease, Registry
from dragoman.server.models.served_model import ServedModel
from dragoman.server.requests.answer_room import AnswerRoom
from dragoman.server.requests.answers import SubmittedInput, answer_to, score_of
from dragoman.server.requests.calls import Answer, Call, Delta, Scored, ScoringCall
from dragoman.server.requests.current_call import (
    current_client,
    current_priority,
    current_record,
    current_trace,
    note_version,
)
from dragoman.server.requests.pace import Pace
from dragoman.server.requests.prepare import CallLimits, PreparedInput, prepare, prepare_scoring
from dragoman.server.requests.tokenization import Tokenising
from dragoman.server.requests.traces import current_exemplar, trace_sequences

__all__ = ["Runtime"]


class Runtime:
    """Answers calls with the models of a registry."""

    def __init__(
        self,
        registry: Registry,
        lifecycle: Lifecycle,
        *,
        max_inputs: int,
        max_message_bytes: int | None = None,
    ) -> None:
        """Answer calls of up to `max_inputs` inputs, in messages of up to `max_message_bytes`; None: any size."""
        self.registry = registry
        self.max_message_bytes = max_message_bytes
        self._lifecycle = lifecycle
        self._limits = CallLimits(max_inputs, max_message_bytes)
        self._tokenising = Tokenising()

    async def answer(self, call: Call) -> list[Answer]:
        """Answer all inputs, in their order.

        Raises:
            RequestError: one of its leaves; see `dragoman.server.errors`. Nothing of the call runs on.
        """
        with self._leased(call) as lease:
            model = lease.model
            prepared = await self._prepare(model, call)
            pace = Pace()
            with self._submitted(model, call, prepared) as inputs:
                return [await answer_to(each, await _all_results(each, pace), pace) for each in inputs]

    async def score(self, call: ScoringCall) -> list[Scored]:
        """Return how probable all texts are, in their order.

        Raises:
            RequestError: one of its leaves; see `dragoman.server.errors`. Nothing of the call runs on.
        """
        with self._leased(call) as lease:
            model = lease.model
            prepared = await self._prepare(model, call)
            pace = Pace()
            with self._submitted(model, call, prepared) as inputs:
                return [await score_of(each, await _all_results(each, pace), pace) for each in inputs]

    async def stream(self, call: Call, emit: Callable[[Delta], Awaitable[None]]) -> None:
        """Answer all inputs side by side, handing text to `emit`, one delta at a time, as it comes.

        A slow `emit` holds up nothing but its own call: tokens are joined until it has time for them.

        Raises:
            RequestError: as `answer` does.
        """
        with self._leased(call) as lease:
            prepared = await self._prepare(lease.model, call, is_streamed=True)
            with self._submitted(lease.model, call, prepared, is_streamed=True) as inputs:
                await _follow_all(inputs, emit)

    async def _prepare(
        self, model: ServedModel, call: Call | ScoringCall, *, is_streamed: bool = False
    ) -> list[PreparedInput]:
        # Each answer of a stream is a message of its own.
        limits = CallLimits(self._limits.max_inputs, None) if is_streamed else self._limits
        began_s = time.perf_counter()
        try:
            if isinstance(call, ScoringCall):
                prepared = await prepare_scoring(model, call, limits, self._tokenising)
            else:
                prepared = await prepare(model, call, limits, self._tokenising)
        except (DeadlineExceeded, asyncio.CancelledError):
            if _expired(call):
                model.metrics.observe_late("admission")
            raise
        model.metrics.observe_preparation(time.perf_counter() - began_s)
        return prepared

    @contextmanager
    def _submitted(
        self,
        model: ServedModel,
        call: Call | ScoringCall,
        prepared: list[PreparedInput],
        *,
        is_streamed: bool = False,
    ) -> Iterator[list[SubmittedInput]]:
        """Submit every input; on the way out, free those that still run."""
        inputs = _submit(model, call, prepared, is_streamed=is_streamed)
        tickets = [ticket for each in inputs for ticket in each.tickets]

        def cancel() -> None:
            if open_tickets := [ticket for ticket in tickets if ticket.finished_s is None]:
                model.engine.cancel(*open_tickets)

        try:
            if self.max_message_bytes is not None and prepared[0].parameters[0].num_alternatives is not None:
                _watch(inputs, self.max_message_bytes, cancel, are_one_message=not is_streamed)
            yield inputs
        except Cancelled:
            for each in inputs:
                if each.room is not None:
                    each.room.check()
            raise
        finally:
            cancel()
            _count_end(model, call, prepared, tickets)

    def _leased(self, call: Call | ScoringCall) -> Lease:
        if not self._lifecycle.accepts_calls:
            raise Draining
        lease = self.registry.lease(call.model, call.version, call.sticky_key)
        note_version(lease.model.version)
        return lease


def _submit(
    model: ServedModel, call: Call | ScoringCall, prepared: list[PreparedInput], *, is_streamed: bool
) -> list[SubmittedInput]:
    if _expired(call):
        model.metrics.observe_late("admission")
        raise DeadlineExceeded("the deadline passed before the call could be queued")
    trace = current_trace()
    tickets = iter(
        model.engine.submit_all(
            [(each.token_ids, parameters) for each in prepared for parameters in each.parameters],
            deadline_s=call.deadline_s,
            is_streamed=is_streamed,
            client=current_client(),
            priority=current_priority(call.priority),
            step_interval=0 if trace is None else trace.step_interval,
        )
    )
    inputs = []
    for each in prepared:
        of_input = list(itertools.islice(tickets, len(each.parameters)))
        inputs.append(SubmittedInput(model, each.token_ids, each.parameters[0].stop, of_input))
        num_unknown = each.token_ids.count(model.manifest.special_tokens.unknown)
        model.metrics.observe_accepted(len(each.token_ids), num_unknown)
    if (record := current_record()) is not None and record.pays_tokens:
        record.pay(sum(len(each.token_ids) for each in prepared))
    return inputs


def _count_end(
    model: ServedModel, call: Call | ScoringCall, prepared: list[PreparedInput], tickets: list[Ticket]
) -> None:
    """Count what became of a call's sequences, which have all ended."""
    exemplar = current_exemplar()
    for ticket in tickets:
        model.metrics.observe_times(ticket.submitted_s, ticket.admitted_s, ticket.first_token_s, exemplar)
    if (trace := current_trace()) is not None:
        trace.set(version=model.version, inputs=len(prepared), sequences=len(tickets))
        trace_sequences(trace, tickets)
    if _expired(call) and not all(ticket.is_answered for ticket in tickets):
        waits = any(ticket.admitted_s is None for ticket in tickets)
        model.metrics.observe_late("queue" if waits else "running")
    if (record := current_record()) is not None and record.pays_tokens:
        record.pay(_num_used_tokens(prepared, tickets))


def _num_used_tokens(prepared: Sequence[PreparedInput], tickets: Sequence[Ticket]) -> int:
    """Returns the tokens that were produced. What was begun in vain counts with the most that it might have had."""
    parameters = (each for one in prepared for each in one.parameters)
    return sum(
        ticket.num_answered_tokens
        if ticket.is_answered
        else each.max_tokens * (ticket.admitted_s is not None)
        for ticket, each in zip(tickets, parameters, strict=True)
    )


def _watch(
    inputs: list[SubmittedInput], max_bytes: int, cancel: Callable[[], None], *, are_one_message: bool
) -> None:
    """Count the bytes of answers as they come, and `cancel` when there are too many."""
    room = AnswerRoom(max_bytes, cancel)
    for each in inputs:
        each.room = room if are_one_message else AnswerRoom(max_bytes, cancel)
        for ticket in each.tickets:
            ticket.when_answered(each.room.take)


async def _all_results(submitted: SubmittedInput, pace: Pace) -> list[Decoded]:
    """Wait for the results of an input's sequences; `pace` counts none of the waiting."""
    results = []
    for ticket in submitted.tickets:
        waits = ticket.finished_s is None
        results.append(await ticket.result())
        if waits:
            pace.begin_turn()
    return results


async def _follow_all(inputs: Sequence[SubmittedInput], emit: Callable[[Delta], Awaitable[None]]) -> None:
    """Emit the text of all inputs as it comes, one delta at a time."""
    if len(inputs) == 1:
        await _follow(0, inputs[0], emit)
        return
    turn = asyncio.Lock()

    async def emit_in_turn(delta: Delta) -> None:
        async with turn:
            await emit(delta)

    try:
        async with asyncio.TaskGroup() as group:
            for index, each in enumerate(inputs):
                group.create_task(_follow(index, each, emit_in_turn))
    except ExceptionGroup as errors:
        raise _first(errors) from None


async def _follow(index: int, submitted: SubmittedInput, emit: Callable[[Delta], Awaitable[None]]) -> None:
    """Emit one input's text as it comes; of several answers, the best one's when it is known."""
    if len(submitted.tickets) > 1:
        pace = Pace()
        answer = await answer_to(submitted, await _all_results(submitted, pace), pace)
        await emit(Delta(index, answer.best.text, answer))
        return
    [ticket] = submitted.tickets
    text = submitted.new_text()
    async for token_ids in ticket:
        if piece := text.push(token_ids):
            await emit(Delta(index, piece, None))
    decoded = await ticket.result()
    await emit(Delta(index, text.finish(), await answer_to(submitted, [decoded], Pace())))


def _expired(call: Call | ScoringCall) -> bool:
    return call.deadline_s is not None and time.monotonic() >= call.deadline_s


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
