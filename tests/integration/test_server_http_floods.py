"""Connections to the metrics port that never ask, or ask for ever: probes are answered beside them."""

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry
from tests.integration.serving import PATIENCE_S, http_get
from waitress.server import TcpWSGIServer

from dragoman.server.config import load_settings
from dragoman.server.lifecycle import Lifecycle
from dragoman.server.operations import http_server
from dragoman.server.operations.endpoints import OperationsServer
from dragoman.server.operations.http_server import MAX_CONNECTIONS
from dragoman.server.security.credentials import Credentials

HALF_A_REQUEST = b"GET /metrics HTTP/1.1\r\nHost: "


@pytest.fixture
def operations() -> Iterator[OperationsServer]:
    settings = load_settings(options={"server.metrics_port": 0})
    running = OperationsServer(settings, Credentials(settings.security), CollectorRegistry(), Lifecycle())
    yield running
    running.close()


@contextlib.contextmanager
def half_open(port: int, num_connections: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
            for _ in range(num_connections)
        ]
        for connection in connections:
            connection.sendall(HALF_A_REQUEST)
        yield connections


def is_closed(connection: socket.socket) -> bool:
    """Wait until the other side closes the connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_half_requests_hold_no_thread_and_delay_no_probe(operations: OperationsServer) -> None:
    num_threads = threading.active_count()
    with half_open(operations.port, MAX_CONNECTIONS - 1):
        for _ in range(20):
            assert http_get(operations.port, "/healthz") == (200, "alive\n")
        assert threading.active_count() <= num_threads  # those of an earlier test may still end


def test_with_one_connection_too_many_the_longest_silent_one_is_closed(operations: OperationsServer) -> None:
    with half_open(operations.port, 2 * MAX_CONNECTIONS) as connections:
        assert all(is_closed(connection) for connection in connections[:MAX_CONNECTIONS])
        for _ in range(5):
            assert http_get(operations.port, "/healthz")[0] == 200


def test_a_request_has_a_deadline_however_often_a_byte_comes(
    operations: OperationsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT_S", 0.5)
    with half_open(operations.port, 1) as [connection]:
        begin_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begin_s < PATIENCE_S:
                connection.sendall(b"x")
                connection.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if connection.recv(1) == b"":
                        break
        assert time.monotonic() - begin_s < PATIENCE_S, "it was never closed"
    assert http_get(operations.port, "/healthz")[0] == 200


def test_a_connection_is_kept_for_the_next_request(operations: OperationsServer) -> None:
    with socket.create_connection(("127.0.0.1", operations.port), timeout=PATIENCE_S) as connection:
        for _ in range(3):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while not received.endswith(b"alive\n"):
                received += connection.recv(4096)
            assert received.startswith(b"HTTP/1.1 200")


def test_without_files_left_it_makes_room_and_does_not_spin(
    operations: OperationsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_refused = 0
    accept = TcpWSGIServer.accept

    def refuse(listening: object) -> object:
        nonlocal num_refused
        num_refused += 1
        raise OSError(errno.EMFILE, "Too many open files")

    with half_open(operations.port, 1) as [silent]:
        until(lambda: bool(operations._server._server.active_channels))
        monkeypatch.setattr(TcpWSGIServer, "accept", refuse)
        with socket.create_connection(("127.0.0.1", operations.port), timeout=PATIENCE_S):
            assert is_closed(silent), "its file is worth more to a new connection"
            time.sleep(0.5)
            assert 1 <= num_refused <= 8
        monkeypatch.setattr(TcpWSGIServer, "accept", accept)
    assert http_get(operations.port, "/healthz")[0] == 200


@pytest.mark.parametrize("request_line", [b"\x16\x03\x01\x00", b"GET", b"GET /" + b"x" * 40_000])
def test_what_is_no_request_is_answered_and_closed(operations: OperationsServer, request_line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", operations.port), timeout=PATIENCE_S) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request_line + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while connection.recv(4096):
                pass
    assert http_get(operations.port, "/healthz")[0] == 200
