"""The interceptors around every call of our services, with one job each.

`chains.py` puts them together. A call passes them from the outside in:

| interceptor | job |
|---|---|
| `recording` | gives the call its outcome, to the caller and in the record |
| `identifying` | finds its caller; refuses a call that the caller has no right to; begins its trace |
| `holding` | lets it wait while the server drains |
| `admitting` | refuses it when it is late, or one too many, of all or of its client |
| `receiving` | reads its message |
| `parsing_messages` | parses it |
| `sizing` | refuses an answer that is too long for a message |

Of a method that takes a stream, each message is a call: `request_streams.py` puts the chain around each of them.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import Descriptor

from dragoman.server.errors import AnswerTooLarge, FieldViolation, InvalidRequest, Unauthenticated
from dragoman.server.fronts.grpc.authentication import Authenticator
from dragoman.server.fronts.grpc.draining import CallGate
from dragoman.server.fronts.grpc.parsing import Parsing
from dragoman.server.fronts.grpc.status import CallStatus, to_status
from dragoman.server.requests.record import CallRecord
from dragoman.server.requests.recorder import CallRecorder
from dragoman.server.scopes import Scope

__all__ = [
    "Handler",
    "admitting",
    "arriving",
    "holding",
    "identifying",
    "opening",
    "parsing_messages",
    "receiving",
    "recording",
    "sizing",
]

NO_MESSAGE_S = 1.0
"""How long a call that ended its sending without a message may take to turn out to be cancelled."""

REQUEST_ID_KEY = "x-request-id"
"""Metadata with the id of a call: the caller's own, or the one that the server gave it, in the answer."""

# Strings: generic in the stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context = grpc.aio.ServicerContext[Any, Any]
Answer: TypeAlias = Callable[[CallRecord, Any, Context], Awaitable[Any]]
"""The rest of a chain. It takes the message, further in the request, and returns what is sent: bytes, or None of a
stream."""


def recording(recorder: CallRecorder, method: str, answer: Answer) -> Callable[[Any, Context], Any]:
    """Returns gRPC's behaviour of a method: it records the call and sends its outcome."""

    async def recorded(_: Any, context: Context) -> Any:
        metadata: Any = context.invocation_metadata() or ()
        record = recorder.begin(method, context.time_remaining(), _request_id(metadata), metadata)
        trailing = ((REQUEST_ID_KEY, record.request_id),)
        context.set_trailing_metadata(trailing)
        # Runs when the status has been sent, which is later than when this function returns.
        context.add_done_callback(end)  # type: ignore[arg-type]  # the stubs want a class
        with record:
            try:
                return await answer(record, None, context)
            except grpc.aio.InternalError as error:  # the connection broke under a message
                raise asyncio.CancelledError from error
        # Out here the error is gone, and with it the message and the request that its traceback holds.
        assert record.failure is not None
        await _abort(context, to_status(record.failure, trailing))
        return None

    def end(_: Context) -> None:
        recorder.in_flight.end()

    return recorded


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    return next((value for key, value in metadata if key == REQUEST_ID_KEY and isinstance(value, str)), None)


def identifying(authenticator: Authenticator, path: str, scopes: frozenset[Scope], answer: Answer) -> Answer:
    """Returns an interceptor that refuses a call whose caller has none of `scopes`."""

    async def identified(record: CallRecord, message: bytes | None, context: Context) -> Any:
        record.identify(lambda: authenticator.caller_of(context, record.metadata), scopes)
        record.begin_trace(path)  # not for everyone: it costs more than the refusal of a stranger
        return await answer(record, message, context)

    return identified


def opening(
    recorder: CallRecorder,
    path: str,
    authenticator: Authenticator,
    scopes: frozenset[Scope],
    stream: Callable[[Any, Context], Awaitable[None]],
) -> Callable[[Any, Context], Any]:
    """Returns gRPC's behaviour of a method that takes a stream: `stream`, where the caller has one of `scopes`.

    A stream of any other caller is refused as a call is, before it is read.
    """
    method = path.rpartition("/")[2]
    refused = recording(recorder, method, identifying(authenticator, path, scopes, _nothing))

    async def opened(_: Any, context: Context) -> None:
        metadata: Any = context.invocation_metadata() or ()
        try:
            is_allowed = not authenticator.caller_of(context, metadata).scopes.isdisjoint(scopes)
        except Unauthenticated:
            is_allowed = False
        await (stream if is_allowed else refused)(None, context)

    return opened


async def _nothing(_: CallRecord, _message: None, _context: Context) -> None:
    """Does nothing: the stream was refused before its answer."""


def holding(gate: CallGate, answer: Answer) -> Answer:
    """Returns an interceptor that lets a call wait while `gate` is closed."""

    async def held(record: CallRecord, message: bytes | None, context: Context) -> Any:
        await gate.wait()
        return await answer(record, message, context)

    return held


def admitting(answer: Answer, *, uses_tokens: bool) -> Answer:
    """Returns an interceptor that refuses a call that is late, or one too many; see `CallRecord.admit`."""

    async def admitted(record: CallRecord, message: bytes | None, context: Context) -> Any:
        record.admit(uses_tokens=uses_tokens)
        return await answer(record, message, context)

    return admitted


def receiving(answer: Answer) -> Answer:
    """Returns an interceptor that reads the call's message."""

    async def received(record: CallRecord, _: None, context: Context) -> Any:
        return await answer(record, await _read(record, context), context)

    return received


def arriving(answer: Answer) -> Answer:
    """Returns the interceptor in the place of `receiving` for a call of a stream: the call began with its message."""

    async def arrived(record: CallRecord, message: bytes, context: Context) -> Any:
        record.begin_message()
        return await answer(record, message, context)

    return arrived


def parsing_messages(
    parsing: Parsing,
    kind: Descriptor,
    handler: Handler,
    model_of: Callable[[Any], str | None],
    answer: Answer,
) -> Answer:
    """Returns an interceptor that parses the message, so that a message that cannot be parsed has an outcome too."""
    parse: Any = handler.request_deserializer

    async def parsed(record: CallRecord, message: bytes, context: Context) -> Any:
        request = await parsing.parse(kind, parse, message)
        record.name_model(model_of(request))
        return await answer(record, request, context)

    return parsed


def sizing(handler: Handler, max_bytes: int) -> Answer:
    """Returns the inside of a chain: it calls `handler` and refuses an answer of more than `max_bytes`.

    gRPC would find out too late for the call's outcome that a message is too long.
    """
    serialize: Any = handler.response_serializer
    behaviour: Any = handler.stream_stream or handler.unary_stream or handler.unary_unary

    async def stream(_: CallRecord, request: Any, context: Context) -> None:
        await behaviour(request, context)

    async def sized(_: CallRecord, request: Any, context: Context) -> bytes:
        message: bytes = serialize(await behaviour(request, context))
        if len(message) > max_bytes:
            raise AnswerTooLarge(max_bytes)
        return message

    return stream if handler.response_streaming else sized


async def _read(record: CallRecord, context: Context) -> bytes:
    """Returns the call's message.

    Raises:
        InvalidRequest: the client ended its sending without a message.
    """
    message = await context.read()
    if message is grpc.aio.EOF:
        # gRPC reads the same from a call that was cancelled or whose message is too long, and cancels its task next.
        await asyncio.sleep(NO_MESSAGE_S)
        raise InvalidRequest([FieldViolation("", "the call came without a message")])
    record.begin_message()
    return message  # type: ignore[no-any-return]


async def _abort(context: Context, status: CallStatus) -> None:
    # gRPC may have ended the call first: its deadline passed, or its client has gone.
    with contextlib.suppress(grpc.aio.InternalError):
        await context.abort_with_status(status)
