"""Text in, answers out: the core of every service, free of any transport.

A call's life: refuse it or tokenise its inputs, check all rules at once, submit each input to the model's
engine, turn tokens into text, and free whatever is still running when the caller leaves.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from server.engine import Ticket
from server.errors import DeadlineExceeded, Draining, FieldViolation, InvalidRequest
from server.lane import Finished, FinishReason
from server.lifecycle import Lifecycle
from server.registry import Registry, ServedModel
from server.text import OutputText, StopStrings
from server.validation import Options, Room, check_options, decoding_parameters

__all__ = ["Answer", "Call", "Delta", "Runtime"]

_MAX_INLINE_CHARACTERS = 2048
"""Longer texts are tokenised in a thread (about 1 us a character, without the GIL), off the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a caller asks.

    Attributes:
        model: a name.
        version: "" for whichever is served.
        task: what the called service does; the model must do the same.
        inputs: texts, each answered on its own.
        input_field: the request's field that `inputs` came from, for messages.
        options: the same for all inputs.
        deadline_s: on `time.monotonic()`, or None.
    """

    model: str
    version: str
    task: str
    inputs: Sequence[str]
    input_field: str
    options: Options = field(default_factory=Options)
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One input's answer. The end of sequence counts as an output token."""

    version: str
    text: str
    finish_reason: FinishReason
    num_input_tokens: int
    num_output_tokens: int
    log_probability: float


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of input number `index`; the last delta of each input carries its answer."""

    index: int
    text: str
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class _Input:
    """An input that the engine has."""

    model: ServedModel
    call: Call
    token_ids: Sequence[int]
    ticket: Ticket

    def new_text(self) -> OutputText:
        context = _context(self.model, self.token_ids)
        return OutputText(self.model.tokenizer, context_ids=context, stop=self.call.options.stop)


class Runtime:
    """Answers calls with the models of a registry."""

    def __init__(self, registry: Registry, lifecycle: Lifecycle, *, max_inputs: int) -> None:
        self.registry = registry
        self._lifecycle = lifecycle
        self._max_inputs = max_inputs

    async def answer(self, call: Call) -> list[Answer]:
        """Answer all inputs, in their order.

        Raises:
            RequestError: one of its leaves; see `server.errors`. Nothing of the call runs on.
        """
        async with self._submitted(call) as inputs:
            return [await _answer(each) for each in inputs]

    async def stream(self, call: Call, emit: Callable[[Delta], Awaitable[None]]) -> None:
        """Answer all inputs side by side, handing text to `emit`, one delta at a time, as it comes.

        A slow `emit` holds up nothing but its own call: tokens are joined until it has time for them.

        Raises:
            RequestError: as `answer` does.
        """
        async with self._submitted(call, stream=True) as inputs:
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

    @asynccontextmanager
    async def _submitted(self, call: Call, *, stream: bool = False) -> AsyncIterator[list[_Input]]:
        """Submit every input; on the way out, free those that still run."""
        inputs: list[_Input] = []
        try:
            await self._submit(call, inputs, stream=stream)
            yield inputs
        finally:
            for each in inputs:
                each.ticket.cancel()
                each.model.metrics.observe_times(
                    each.ticket.submitted_s, each.ticket.admitted_s, each.ticket.first_token_s
                )
            if _expired(call) and any(each.ticket.admitted_s is None for each in inputs):
                inputs[0].model.metrics.observe_rejected("deadline")

    async def _submit(self, call: Call, inputs: list[_Input], *, stream: bool) -> None:
        if not self._lifecycle.accepts_calls:
            raise Draining
        model = self.registry.find(call.model, call.version)
        encoded = await self._encode(model, call)
        if _expired(call):
            model.metrics.observe_rejected("deadline")
            raise DeadlineExceeded("the deadline passed before the call could be queued")
        for index, token_ids in enumerate(encoded):
            stop = call.options.stop
            context = _context(model, token_ids)
            ticket = model.engine.submit(
                token_ids,
                decoding_parameters(call.options, _room(model, len(token_ids)), index),
                deadline_s=call.deadline_s,
                stop=StopStrings(model.tokenizer, context_ids=context, stop=stop) if stop else None,
                stream=stream,
            )
            inputs.append(_Input(model, call, token_ids, ticket))
            model.metrics.observe_accepted(len(token_ids))

    async def _encode(self, model: ServedModel, call: Call) -> list[Sequence[int]]:
        """Check every rule and tokenise.

        Raises:
            InvalidRequest: naming every rule that is broken.
        """
        if model.manifest.task != call.task:
            raise InvalidRequest(
                [
                    FieldViolation(
                        "model", f"{model.name!r} is a {model.manifest.task} model, not for {call.task}"
                    )
                ]
            )
        violations = _check_texts(call, self._max_inputs)
        if violations:  # too many or empty texts are not worth tokenising
            raise InvalidRequest([*violations, *check_options(call.options, _room(model, 0))])
        encoded = await _tokenise(model, call.inputs)
        limit = model.max_input_tokens
        violations = [
            FieldViolation(
                _input_path(call, index), f"{len(token_ids)} tokens are more than {limit}, the model's limit"
            )
            for index, token_ids in enumerate(encoded)
            if len(token_ids) > limit
        ]
        longest = min(max(len(token_ids) for token_ids in encoded), limit)
        violations += check_options(call.options, _room(model, longest))
        if violations:
            raise InvalidRequest(violations)
        return encoded


def _check_texts(call: Call, max_inputs: int) -> list[FieldViolation]:
    if not call.inputs:
        return [FieldViolation(call.input_field, "is empty: there is nothing to answer")]
    if len(call.inputs) > max_inputs:
        return [
            FieldViolation(
                call.input_field, f"{len(call.inputs)} are more than {max_inputs}, the server's limit"
            )
        ]
    return [
        FieldViolation(_input_path(call, index), "is empty")
        for index, text in enumerate(call.inputs)
        # White space is a fine beginning for a language model; to a translation model it says nothing.
        if not (text.strip() if call.task == "translation" else text)
    ]


async def _tokenise(model: ServedModel, texts: Sequence[str]) -> list[Sequence[int]]:
    def encode() -> list[Sequence[int]]:
        return [model.tokenizer.encode(text).ids for text in texts]

    if sum(map(len, texts)) <= _MAX_INLINE_CHARACTERS:
        return encode()
    return await asyncio.to_thread(encode)


async def _answer(submitted: _Input) -> Answer:
    finished = await submitted.ticket.result()
    text = submitted.new_text()
    text.push(finished.token_ids)
    text.finish()
    return _settled(submitted, finished, text)


async def _follow(index: int, submitted: _Input, emit: Callable[[Delta], Awaitable[None]]) -> None:
    text = submitted.new_text()
    async for token_ids in submitted.ticket:
        if piece := text.push(token_ids):
            await emit(Delta(index, piece, None))
    finished = await submitted.ticket.result()
    piece = text.finish()
    await emit(Delta(index, piece, _settled(submitted, finished, text)))


def _settled(submitted: _Input, finished: Finished, text: OutputText) -> Answer:
    ticket, model = submitted.ticket, submitted.model
    assert ticket.first_token_s is not None, "a finished sequence has tokens"
    assert ticket.finished_s is not None, "its result was awaited"
    model.metrics.observe_answer(finished.num_output_tokens, ticket.finished_s - ticket.first_token_s)
    return Answer(
        version=model.version,
        text=text.text,
        finish_reason=FinishReason.STOP_STRING if text.stopped else finished.finish_reason,
        num_input_tokens=len(submitted.token_ids),
        num_output_tokens=finished.num_output_tokens,
        log_probability=finished.log_probability,
    )


def _room(model: ServedModel, num_input_tokens: int) -> Room:
    limits = model.manifest.limits
    if model.manifest.task == "translation":
        return Room(limits.max_output_tokens, limits.max_output_tokens)
    left = limits.max_context_tokens - num_input_tokens
    return Room(limits.max_output_tokens, min(limits.max_output_tokens, left))


def _context(model: ServedModel, token_ids: Sequence[int]) -> Sequence[int]:
    """A generated text continues its prompt; a translation begins anew."""
    return token_ids if model.manifest.task == "generation" else ()


def _expired(call: Call) -> bool:
    return call.deadline_s is not None and time.monotonic() >= call.deadline_s


def _input_path(call: Call, index: int) -> str:
    return f"{call.input_field}[{index}]" if call.task == "translation" else call.input_field


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
