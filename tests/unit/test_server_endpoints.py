"""/metrics, /healthz and /readyz follow the server's phase. No sockets: the WSGI application is called."""

from wsgiref.util import setup_testing_defaults

import pytest
from prometheus_client import CollectorRegistry, Counter

from dragoman.server.config import load_settings
from dragoman.server.errors import AddressError
from dragoman.server.lifecycle import Lifecycle, Phase
from dragoman.server.operations.endpoints import OperationsServer, operations_app
from dragoman.server.security.credentials import Credentials


def get(lifecycle: Lifecycle, path: str, registry: CollectorRegistry | None = None) -> tuple[int, str]:
    environ: dict[str, object] = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    answer: list[str] = []
    app = operations_app(registry or CollectorRegistry(), lifecycle)
    body = app(environ, lambda status, headers, exc_info=None: answer.append(status))  # type: ignore[arg-type]
    return int(answer[0].split()[0]), b"".join(body).decode()


def operations_on(port: int) -> OperationsServer:
    settings = load_settings(options={"server.metrics_port": port})
    return OperationsServer(settings, Credentials(settings.security), CollectorRegistry(), Lifecycle())


@pytest.mark.parametrize(
    ("phase", "ready"), [("loading", 503), ("serving", 200), ("draining", 503), ("stopping", 503)]
)
def test_ready_only_while_serving(phase: str, ready: int) -> None:
    lifecycle = Lifecycle()
    lifecycle.phase = Phase(phase)
    assert get(lifecycle, "/readyz") == (ready, f"{phase}\n")
    assert get(lifecycle, "/healthz") == (200, "alive\n")


@pytest.mark.parametrize(("what", "said"), [("is_failing", "failing"), ("is_stuck", "stuck")])
def test_what_is_wrong_turns_readiness_off_and_nothing_else(what: str, said: str) -> None:
    lifecycle = Lifecycle()
    lifecycle.phase = Phase.SERVING
    setattr(lifecycle, what, True)
    assert get(lifecycle, "/readyz") == (503, f"{said}\n")
    assert get(lifecycle, "/healthz") == (200, "alive\n")
    assert lifecycle.accepts_calls
    lifecycle.phase = Phase.DRAINING
    assert get(lifecycle, "/readyz") == (503, "draining\n")


def test_liveness_goes_off_where_a_new_start_is_better() -> None:
    lifecycle = Lifecycle()
    lifecycle.is_alive = False
    assert get(lifecycle, "/healthz") == (503, "failing again and again\n")


def test_metrics_in_any_phase() -> None:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    status, body = get(Lifecycle(), "/metrics", registry)
    assert status == 200
    assert "things_total 3.0" in body


def test_other_paths_say_what_there_is() -> None:
    assert get(Lifecycle(), "/") == (404, "try /metrics, /healthz or /readyz\n")


def test_a_port_in_use_is_named() -> None:
    first = operations_on(0)
    try:
        with pytest.raises(AddressError, match=f"cannot serve metrics on 127.0.0.1:{first.port}: Address"):
            operations_on(first.port)
    finally:
        first.close()
