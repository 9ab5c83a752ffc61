"""Whom a call comes from, and which calls a caller may make."""

from typing import Any

import grpc
import pytest
from benchmarks.played_context import PlayedContext
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from dragoman.server.errors import PermissionDenied
from dragoman.server.fronts.grpc.authentication import Authenticator, address_of
from dragoman.server.fronts.grpc.chains import Interceptors, Protocol
from dragoman.server.fronts.grpc.draining import CallGate
from dragoman.server.operations.metrics import Metrics
from dragoman.server.priority import Priority
from dragoman.server.requests.caller import NOBODY, Caller
from dragoman.server.requests.current_call import current_priority
from dragoman.server.requests.recorder import CallRecorder
from dragoman.server.scopes import Scope


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:4071", "127.0.0.1"),
        ("ipv6:%5B::1%5D:4071", "::1"),
        ("ipv6:[2001:db8::7]:4071", "2001:db8::7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4071", "fe80::1%eth0"),
        ("unix:", "unix:"),
        ("unix:/run/client.sock", "unix:/run/client.sock"),
        ("unknown", "unknown"),
    ],
)
def test_an_address_has_no_port(peer: str, address: str) -> None:
    assert address_of(peer) == address


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv6:%5B2001:db8::7%5D:4071", "2001:db8::/64"),
        ("ipv6:%5B2001:db8:0:0:ffff:1:2:3%5D:1", "2001:db8::/64"),
        ("ipv6:%5B2001:db8:0:1::7%5D:4071", "2001:db8:0:1::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:4071", "192.0.2.7"),
        ("ipv6:%5B::1%5D:4071", "::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4071", "fe80::1%eth0"),
        ("ipv6:nonsense", ""),
        ("ipv4:192.0.2.7:4071", "192.0.2.7"),
    ],
)
def test_addresses_of_one_network_are_one_client(peer: str, client: str) -> None:
    caller = Authenticator(ipv6_prefix_bits=64).caller_of(PlayedContext(peer=peer), ())  # type: ignore[arg-type]
    assert caller.identity == client


def test_how_much_of_an_address_is_a_client_can_be_set() -> None:
    context: Any = PlayedContext(peer="ipv6:%5B2001:db8:1:2::7%5D:4071")
    assert Authenticator(ipv6_prefix_bits=48).caller_of(context, ()).identity == "2001:db8:1::/48"
    assert Authenticator(ipv6_prefix_bits=128).caller_of(context, ()).identity == "2001:db8:1:2::7"


def test_a_call_is_refused_whose_caller_lacks_the_scope() -> None:
    metrics = Metrics(1.0)
    recorder = CallRecorder(metrics, {"dates": 4}, max_calls=2)
    caller = Caller("192.0.2.7", frozenset({Scope.INFER}))
    with recorder.begin("LoadModel", None) as refused:
        refused.identify(lambda: caller, {Scope.ADMIN})
    assert refused.failure is not None
    assert (refused.failure.code, refused.caller) == ("PERMISSION_DENIED", caller)
    assert "admin" in refused.failure.message
    labels = {"model": "unknown", "stage": "arrival", "reason": "not_permitted"}
    assert metrics.registry.get_sample_value("dragoman_rejected_requests_total", labels) == 1
    allowed = recorder.begin("Translate", None)
    allowed.identify(lambda: caller, {Scope.INFER})
    assert allowed.rejection == "no_message"


def test_nobody_may_do_anything() -> None:
    recorder = CallRecorder(Metrics(1.0), {}, max_calls=2)
    for scope in Scope:
        with pytest.raises(PermissionDenied):
            recorder.begin("Translate", None).identify(lambda: NOBODY, {scope})


@pytest.mark.parametrize(
    ("admin_methods", "scopes", "code"),
    [
        ((), {Scope.INFER}, None),
        ({"Check"}, {Scope.INFER}, grpc.StatusCode.PERMISSION_DENIED),
        ({"Check"}, {Scope.INFER, Scope.ADMIN}, None),
    ],
)
async def test_a_method_that_changes_what_is_served_needs_admin(
    admin_methods: set[str], scopes: set[Scope], code: grpc.StatusCode | None
) -> None:
    async def serve(request: HealthCheckRequest, _: Any) -> HealthCheckResponse:
        return HealthCheckResponse()

    recorder = CallRecorder(Metrics(1.0), {}, max_calls=2)
    interceptors = Interceptors(
        recorder, CallGate(), Authenticator(scopes), max_inputs=8, max_message_bytes=1000, max_streams=100
    )
    protocol = Protocol(("service",), frozenset(), frozenset(admin_methods))
    handler = grpc.unary_unary_rpc_method_handler(
        serve, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
    )
    around: Any = interceptors.around("/grpc.health.v1.Health/Check", handler, protocol)
    context = PlayedContext(HealthCheckRequest().SerializeToString())
    await around.stream_unary(None, context)
    assert (context.status and context.status.code) == code


@pytest.mark.parametrize(
    ("asked", "best", "given"),
    [
        (Priority.HIGH, Priority.HIGH, Priority.HIGH),
        (Priority.HIGH, Priority.NORMAL, Priority.NORMAL),
        (Priority.LOW, Priority.NORMAL, Priority.LOW),
        (Priority.NORMAL, Priority.LOW, Priority.LOW),
    ],
)
def test_a_call_gets_the_best_priority_that_its_caller_may_have(
    asked: Priority, best: Priority, given: Priority
) -> None:
    caller = Caller("app", frozenset({Scope.INFER}), is_authenticated=True, best_priority=best)
    with CallRecorder(Metrics(1.0), {}, max_calls=2).begin("Translate", None) as record:
        record.identify(lambda: caller, {Scope.INFER})
        assert current_priority(asked) is given
    assert current_priority(asked) is asked
