"""The chain around a method, for a protocol that is not ours: its model's field and its methods are its own."""

import asyncio
from typing import Any

import grpc
import pytest
from benchmarks.played_context import PlayedContext
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from dragoman.server.fronts.grpc.authentication import Authenticator
from dragoman.server.fronts.grpc.chains import InterceptedServer, Interceptors, Protocol
from dragoman.server.fronts.grpc.draining import CallGate
from dragoman.server.operations.metrics import Metrics
from dragoman.server.requests.recorder import CallRecorder

OTHER = Protocol(model_fields=("service",), decoding_methods=frozenset({"Check"}))


class Server:
    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class Context(PlayedContext):
    """Of a call that has 10 s, and whose end is looked at."""

    def __init__(self, request: HealthCheckRequest) -> None:
        super().__init__(request.SerializeToString())
        self.when_done: list[Any] = []

    def time_remaining(self) -> float:
        return 10.0

    def add_done_callback(self, callback: Any) -> None:
        self.when_done.append(callback)


def intercepted(recorder: CallRecorder, behaviour: Any, max_message_bytes: int = 1000) -> Any:
    server: Any = Server()
    interceptors = Interceptors(
        recorder,
        CallGate(),
        Authenticator(),
        max_inputs=8,
        max_message_bytes=max_message_bytes,
        max_streams=100,
    )
    handler = grpc.unary_unary_rpc_method_handler(
        behaviour, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
    )
    InterceptedServer(server, interceptors, OTHER).add_registered_method_handlers(
        "grpc.health.v1.Health", {"Check": handler}
    )
    return server.handlers["/grpc.health.v1.Health/Check"].stream_unary


async def serve(request: HealthCheckRequest, _: Any) -> HealthCheckResponse:
    return HealthCheckResponse(status=HealthCheckResponse.SERVING)


async def test_a_call_is_answered_counted_and_in_flight_until_its_status_is_sent() -> None:
    metrics = Metrics(1.0)
    recorder = CallRecorder(metrics, {"dates": 4}, max_calls=2)
    context = Context(HealthCheckRequest(service="dates"))
    message = await intercepted(recorder, serve)(None, context)
    assert HealthCheckResponse.FromString(message).status == HealthCheckResponse.SERVING
    labels = {"model": "dates", "method": "Check", "code": "OK"}
    assert metrics.registry.get_sample_value("dragoman_requests_total", labels) == 1
    assert recorder.in_flight.count == 1
    for callback in context.when_done:
        callback(context)
    assert recorder.in_flight.count == 0


async def test_an_answer_that_is_too_long_for_a_message_is_refused() -> None:
    recorder = CallRecorder(Metrics(1.0), {"dates": 4}, max_calls=2)
    context = Context(HealthCheckRequest(service="dates"))
    await intercepted(recorder, serve, max_message_bytes=1)(None, context)
    assert context.status is not None
    assert context.status.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_broken_connection_is_a_call_whose_client_has_left() -> None:
    async def write(_: Any, __: Any) -> None:
        raise grpc.aio.InternalError

    metrics = Metrics(1.0)
    recorder = CallRecorder(metrics, {"dates": 4}, max_calls=2)
    with pytest.raises(asyncio.CancelledError):
        await intercepted(recorder, write)(None, Context(HealthCheckRequest(service="dates")))
    labels = {"model": "dates", "method": "Check", "code": "CANCELLED"}
    assert metrics.registry.get_sample_value("dragoman_requests_total", labels) == 1
