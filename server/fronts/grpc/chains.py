"""A chain of interceptors around each method of a service, put together once, when the service is registered."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from dragoman.server.fronts.grpc.authentication import Authenticator
from dragoman.server.fronts.grpc.draining import CallGate
from dragoman.server.fronts.grpc.interceptors import (
    Handler,
    admitting,
    arriving,
    holding,
    identifying,
    opening,
    parsing_messages,
    receiving,
    recording,
    sizing,
)
from dragoman.server.fronts.grpc.parsing import Parsing
from dragoman.server.fronts.grpc.request_streams import RequestStreams
from dragoman.server.requests.failures import Failure
from dragoman.server.requests.recorder import CallRecorder
from dragoman.server.scopes import Scope

__all__ = ["InterceptedServer", "Interceptors", "Protocol"]


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
        answer = sizing(handler, self._max_message_bytes)
        decodes = method.name in protocol.decoding_methods
        if handler.request_streaming:
            answer = self._request_streams.naming(protocol.request_id, answer)
        model_of = _model_of(method.input_type, protocol)
        answer = parsing_messages(self._parsing, method.input_type, handler, model_of, answer)
        answer = arriving(answer) if handler.request_streaming else receiving(answer)
        scopes = protocol.scopes_for(method.name)
        answer = holding(self._gate, admitting(answer, uses_tokens=decodes))
        answer = identifying(self._authenticator, path, scopes, answer)
        if handler.request_streaming:
            assert protocol.stream_failure is not None, "what is refused in a stream needs an answer"
            stream = self._request_streams.around(method.name, answer, protocol.stream_failure)
            behaviour = opening(self._recorder, path, self._authenticator, scopes, stream)
        else:
            behaviour = recording(self._recorder, method.name, answer)
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


def _model_of(request: Descriptor, protocol: Protocol) -> Callable[[Any], str | None]:
    for name in protocol.model_fields:
        if name in request.fields_by_name:
            return operator.attrgetter(name)
    return _no_model


def _no_model(_: Any) -> None:
    """Returns no name: the request asks for no model."""
