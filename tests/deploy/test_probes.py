"""The probes of the Deployment, asked of the running server as the kubelet asks them."""

import signal
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dragoman.server.app import SERVICE_NAMES
from dragoman.server.config import load_settings
from dragoman.v1 import model_pb2, model_pb2_grpc

PROBES = ["startupProbe", "readinessProbe"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def container(deploy: Path) -> dict[str, Any]:
    deployment = yaml.safe_load((deploy / "base" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(container)


def check(port: int, service: str) -> int:
    """The status that the health service gives; SERVICE_UNKNOWN comes as the error NOT_FOUND."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S).status
        return status


@pytest.mark.parametrize("probe", PROBES)
def test_a_ready_server_passes_every_probe(container: dict[str, Any], probe: str, serving: Any) -> None:
    service = container[probe]["grpc"]["service"]
    assert service in ("", *SERVICE_NAMES)
    assert check(serving.port, service) == SERVING


def test_a_ready_server_is_alive(container: dict[str, Any], serving: Any) -> None:
    path = container["livenessProbe"]["httpGet"]["path"]
    with urllib.request.urlopen(
        f"http://127.0.0.1:{serving.metrics_port}{path}", timeout=PATIENCE_S
    ) as answer:
        assert (answer.status, answer.read()) == (200, b"alive\n")


def test_a_service_name_the_server_does_not_know_would_fail(serving: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        check(serving.port, "dragoman.v1.Nobody")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_sigterm_turns_readiness_off_while_calls_are_answered_then_ends_within_the_grace_period(
    container: dict[str, Any], deploy: Path, start_server: Callable[..., AbstractContextManager[Any]]
) -> None:
    service = container["readinessProbe"]["grpc"]["service"]
    delay_s = 2.0
    with start_server(f"server.drain_delay_s={delay_s}") as server:
        assert check(server.port, service) == SERVING
        server.process.send_signal(signal.SIGTERM)
        stopping = time.monotonic()
        while check(server.port, service) != NOT_SERVING:
            assert time.monotonic() < stopping + delay_s
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            listed = model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
        assert listed.models
        assert server.process.wait(timeout=PATIENCE_S) == 0
        taken_s = time.monotonic() - stopping
    # With nothing running, an end takes the delay and a moment; the grace period leaves room for the rest.
    settings = load_settings(deploy / "base" / "server.toml").server
    deployment = yaml.safe_load((deploy / "base" / "deployment.yaml").read_text())
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert delay_s <= taken_s
    assert taken_s - delay_s + settings.drain_delay_s + settings.drain_timeout_s < grace_s
