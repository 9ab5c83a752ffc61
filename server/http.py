"""/metrics, /healthz and /readyz over plain HTTP, from the process's first moment to its last.

Runs in threads of its own, so that a scrape is answered while models load and while the event loop is busy.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from server.errors import AddressError
from server.lifecycle import Lifecycle

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["OperationsServer", "operations_app"]

CLIENT_TIMEOUT_S = 10.0
"""A client that sends nothing for so long loses its thread."""

POLL_INTERVAL_S = 0.1
"""How often the listening thread looks whether it should stop; new connections wake it at once."""


def operations_app(registry: CollectorRegistry, lifecycle: Lifecycle) -> "WSGIApplication":
    """The WSGI application behind the metrics port."""
    metrics: WSGIApplication = make_wsgi_app(registry)

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/healthz":
            return _plain(start_response, HTTPStatus.OK, "alive")
        if path == "/readyz":
            status = HTTPStatus.OK if lifecycle.is_ready else HTTPStatus.SERVICE_UNAVAILABLE
            return _plain(start_response, status, lifecycle.phase)
        return _plain(start_response, HTTPStatus.NOT_FOUND, "try /metrics, /healthz or /readyz")

    return app


class OperationsServer:
    """Serves `operations_app` in daemon threads.

    Attributes:
        port: the bound one, also when 0 was asked for.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, lifecycle: Lifecycle) -> None:
        """Bind and start serving.

        Raises:
            AddressError: the port is in use, or the host is none of this machine's.
        """
        try:
            self._server = _Server(host, port)
        except OSError as error:
            raise AddressError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
        self._server.set_app(operations_app(registry, lifecycle))
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_INTERVAL_S,), name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_port = False

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # http.server would look up the host's full name here, which can wait on DNS for seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up in the middle is no event."""


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class names it so
        """Scrapes and probes are not logged."""


def _plain(start_response: Callable[..., Any], status: HTTPStatus, line: str) -> Iterable[bytes]:
    body = f"{line}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
