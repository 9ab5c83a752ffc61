"""Around every call of our services: a chain of interceptors with one job each.

The chain of a method is put together once, when its service is registered. A call passes it from the outside in:

| interceptor | job |
|---|---|
| `_recorded` | gives the call its outcome, to the caller and in the record |
| `_identified` | finds its caller; refuses a call that the caller has no right to; begins its trace |
| `_held` | lets it wait while the server drains |
| `_admitted` | refuses it when it is late, or one too many, of all or of its client |
| `_received` | reads its message |
| `_parsed` | parses it |
| `_sized` | refuses an answer that is too long for a message |

Of a method that takes a stream, each message is a call: `request_streams.py` puts the chain around each of them.
"""

import asyncio
import contextlib
import operator
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from dragoman.server.errors import AnswerTooLarge, FieldViolation, InvalidRequest, Unauthenticated
from dragoman.server.fronts.grpc.authentication import Authenticator
from dragoman.server.fronts.grpc.draining import CallGate
from dragoman.server.fronts.grpc.parsing import Parsing
from dragoman.server.fronts.grpc.request_streams import RequestStreams
from dragoman.server.fronts.grpc.status import CallStatus, to_status
from dragoman.server.requests.failures import Failure
from dragoman.server.requests.record import CallRecord
from dragoman.server.requests.recorder import CallRecorder
from dragoman.server.scopes import Scope

__all__ = ["Handler", "InterceptedServer", "Interceptors", "Protocol"]

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


def _no_request_id(_: Any) -> str:
    """Returns no id: the protocol has no streams of requests."""
    return ""


@dataclass(frozen=True, slots=True)
class Protocol:
    """The facts that interceptors need of the services of a protocol.

    Attributes:
        model_fields: fields of requests that have the model's name. A request has one of them at most.
        decoding_methods: names of the methods whose calls need a model's slots.
        admin_methods: names of the methods that change what is served: their callers need the scope `admin`.
        pool: has the descriptors of its services.
        request_id: returns what a client calls a request of a stream.
        stream_failure: returns the response to a request of a stream that failed, from its id.
    """

    model_fields: tuple[str, ...]
    decoding_methods: frozenset[str]
    admin_methods: frozenset[str] = frozenset()
    pool: DescriptorPool = field(default_factory=descriptor_pool.Default)
    request_id: Callable[[Any], str] = _no_request_id
    stream_failure: Callable[[str, Failure], Message] | None = None

    def scopes_for(self, method: str) -> frozenset[Scope]:
        """The scopes of which a caller needs one. What only reads is for all who may do something."""
        if method in self.admin_methods:
            return frozenset({Scope.ADMIN})
        return frozenset({Scope.INFER} if method in self.decoding_methods else {Scope.INFER, Scope.ADMIN})


class Interceptors:
    """Makes the chains of a front's methods."""

    def __init__(
        self,
        recorder: CallRecorder,
        gate: CallGate,
        authenticator: Authenticator,
        *,
        max_inputs: int,
        max_message_bytes: int,
        max_streams: int,
    ) -> None:
        """Let a call have up to `max_inputs` inputs and answers in messages of up to `max_message_bytes`.

        `max_streams` requests of one stream are answered at one time, as many as calls of one connection.
        """
        self._recorder = recorder
        self._gate = gate
        self._authenticator = authenticator
        self._request_streams = RequestStreams(recorder, gate, max_streams)
        self._parsing = Parsing(max_inputs)
        self._max_message_bytes = max_message_bytes

    def around(self, path: str, handler: Handler, protocol: Protocol) -> Handler:
        """Returns a handler that does what `handler` does, inside the chain. `path` is the method's."""
        method = protocol.pool.FindMethodByName(path.removeprefix("/").replace("/", "."))
        answer = _sized(handler, self._max_message_bytes)
        decodes = method.name in protocol.decoding_methods
        if handler.request_streaming:
            answer = self._request_streams.naming(protocol.request_id, answer)
        model_of = _model_of(method.input_type, protocol)
        answer = _parsed(self._parsing, method.input_type, handler, model_of, answer)
        answer = _arrived(answer) if handler.request_streaming else _received(answer)
        scopes = protocol.scopes_for(method.name)
        answer = _held(self._gate, _admitted(answer, uses_tokens=decodes))
        answer = _identified(self._authenticator, path, scopes, answer)
        if handler.request_streaming:
            assert protocol.stream_failure is not None, "what is refused in a stream needs an answer"
            stream = self._request_streams.around(method.name, answer, protocol.stream_failure)
            behaviour = _opened(self._recorder, path, self._authenticator, scopes, stream)
        else:
            behaviour = _recorded(self._recorder, method.name, answer)
        # gRPC calls the handler of a method that takes a stream at once, that of any other when the message is there.
        # On the wire they are the same. So a call is judged before its message is waited for.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(behaviour, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(behaviour, None, None)


class InterceptedServer:
    """Stands in for `server` where generated code registers a service: each of its methods gets its chain."""

    def __init__(self, server: grpc.aio.Server, interceptors: Interceptors, protocol: Protocol) -> None:
        self._server = server
        self._interceptors = interceptors
        self._protocol = protocol

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Does nothing: generated code registers the same methods in this older way too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Register the methods of `service`."""
        intercepted = {
            name: self._interceptors.around(f"/{service}/{name}", handler, self._protocol)
            for name, handler in handlers.items()
        }
        self._server.add_registered_method_handlers(service, intercepted)


def _recorded(recorder: CallRecorder, method: str, answer: Answer) -> Callable[[Any, Context], Any]:
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


def _identified(authenticator: Authenticator, path: str, scopes: frozenset[Scope], answer: Answer) -> Answer:
    async def identified(record: CallRecord, message: bytes | None, context: Context) -> Any:
        record.identify(lambda: authenticator.caller_of(context, record.metadata), scopes)
        record.begin_trace(path)  # not for everyone: it costs more than the refusal of a stranger
        return await answer(record, message, context)

    return identified


def _opened(
    recorder: CallRecorder,
    path: str,
    authenticator: Authenticator,
    scopes: frozenset[Scope],
    stream: Callable[[Any, Context], Awaitable[None]],
) -> Callable[[Any, Context], Any]:
    """A stream whose caller may not send any request is refused as a call is, before it is read."""
    method = path.rpartition("/")[2]
    refused = _recorded(recorder, method, _identified(authenticator, path, scopes, _nothing))

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


def _held(gate: CallGate, answer: Answer) -> Answer:
    async def held(record: CallRecord, message: bytes | None, context: Context) -> Any:
        await gate.wait()
        return await answer(record, message, context)

    return held


def _admitted(answer: Answer, *, uses_tokens: bool) -> Answer:
    async def admitted(record: CallRecord, message: bytes | None, context: Context) -> Any:
        record.admit(uses_tokens=uses_tokens)
        return await answer(record, message, context)

    return admitted


def _received(answer: Answer) -> Answer:
    async def received(record: CallRecord, _: None, context: Context) -> Any:
        return await answer(record, await _read(record, context), context)

    return received


def _arrived(answer: Answer) -> Answer:
    """Takes the place of `_received` for a call of a stream: the call began with its message."""

    async def arrived(record: CallRecord, message: bytes, context: Context) -> Any:
        record.begin_message()
        return await answer(record, message, context)

    return arrived


def _parsed(
    parsing: Parsing,
    kind: Descriptor,
    handler: Handler,
    model_of: Callable[[Any], str | None],
    answer: Answer,
) -> Answer:
    """Reading and parsing are ours to do, so that a message that is none has an outcome too."""
    parse: Any = handler.request_deserializer

    async def parsed(record: CallRecord, message: bytes, context: Context) -> Any:
        request = await parsing.parse(kind, parse, message)
        record.name_model(model_of(request))
        return await answer(record, request, context)

    return parsed


def _model_of(request: Descriptor, protocol: Protocol) -> Callable[[Any], str | None]:
    for name in protocol.model_fields:
        if name in request.fields_by_name:
            return operator.attrgetter(name)
    return _no_model


def _no_model(_: Any) -> None:
    """Returns no name: the request asks for no model."""


def _sized(handler: Handler, max_bytes: int) -> Answer:
    """gRPC would find out too late for the call's outcome that a message is too long."""
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
