"""/metrics, /healthz and /readyz over plain HTTP, from the process's first moment to its last.

Runs in threads of its own, so that a scrape is answered while models load and while the event loop is busy.
"""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from prometheus_client import make_wsgi_app
from prometheus_client.registry import Collector

from dragoman.server.errors import AddressError
from dragoman.server.lifecycle import Lifecycle
from dragoman.server.operations.http_server import HttpServer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["OperationsServer", "operations_app"]


def operations_app(registry: Collector, lifecycle: Lifecycle) -> "WSGIApplication":
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
    """Serves `operations_app` in threads of its own.

    Attributes:
        port: the bound one, also when 0 was asked for.
    """

    def __init__(self, host: str, port: int, registry: Collector, lifecycle: Lifecycle) -> None:
        """Bind and start serving.

        Raises:
            AddressError: the port is in use, or the host is none of this machine's.
        """
        try:
            self._server = HttpServer(host, port, operations_app(registry, lifecycle))
        except OSError as error:
            raise AddressError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
        self.port = self._server.port

    def close(self) -> None:
        """Stop listening."""
        self._server.close()


def _plain(start_response: Callable[..., Any], status: HTTPStatus, line: str) -> Iterable[bytes]:
    body = f"{line}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
