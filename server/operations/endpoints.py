"""/metrics, /healthz and /readyz over HTTP or HTTPS, from the process's first moment to its last.

Runs in threads of its own, so that a scrape is answered while models load and while the event loop is busy.
"""

import ssl
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from dragoman.server.config import ServerSettings
from dragoman.server.errors import AddressError
from dragoman.server.lifecycle import Lifecycle
from dragoman.server.operations.exposition import Registry, metrics_app
from dragoman.server.operations.http_server import HttpServer
from dragoman.server.scopes import Scope
from dragoman.server.security.credentials import Credentials
from dragoman.server.security.tokens import TokenTable, bearer_text

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["OperationsServer", "operations_app"]


def operations_app(
    registry: Registry, lifecycle: Lifecycle, tokens: Callable[[], TokenTable | None] = lambda: None
) -> "WSGIApplication":
    """The WSGI application behind the metrics port. Where there are `tokens`, /metrics asks for one."""
    metrics = metrics_app(registry)

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            if (accepted := tokens()) is not None:
                refusal = _refusal(accepted, environ.get("HTTP_AUTHORIZATION", ""))
                if refusal is not None:
                    return refusal(start_response)
            return metrics(environ, start_response)
        if path == "/healthz":
            if not lifecycle.is_alive:
                return _plain(start_response, HTTPStatus.SERVICE_UNAVAILABLE, "failing again and again")
            return _plain(start_response, HTTPStatus.OK, "alive")
        if path == "/readyz":
            status = HTTPStatus.OK if lifecycle.is_ready else HTTPStatus.SERVICE_UNAVAILABLE
            return _plain(start_response, status, lifecycle.condition)
        return _plain(start_response, HTTPStatus.NOT_FOUND, "try /metrics, /healthz or /readyz")

    return app


class OperationsServer:
    """Serves `operations_app` in threads of its own.

    Attributes:
        port: the bound one, also when 0 was asked for.
    """

    def __init__(
        self, settings: ServerSettings, credentials: Credentials, registry: Registry, lifecycle: Lifecycle
    ) -> None:
        """Bind and start serving, over TLS and only to bearers of tokens where `settings` say so.

        Raises:
            AddressError: the port is in use, or the host is none of this machine's.
        """
        host, port, security = settings.server.http_host, settings.server.metrics_port, settings.security
        tokens = (lambda: credentials.tokens) if security.metrics_need_token else (lambda: None)

        def tls_context() -> ssl.SSLContext | None:
            certificates = credentials.certificates if security.http_tls else None
            return None if certificates is None else certificates.context

        try:
            self._server = HttpServer(host, port, operations_app(registry, lifecycle, tokens), tls_context)
        except OSError as error:
            raise AddressError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
        self.port = self._server.port

    def close(self) -> None:
        """Stop listening."""
        self._server.close()


def _refusal(tokens: TokenTable, header: str) -> "Callable[[StartResponse], Iterable[bytes]] | None":
    """Returns the refusal of a client whose header `Authorization` gives it no right to read metrics; None: it has it.

    https://www.rfc-editor.org/rfc/rfc6750 has the header of the answer.
    """
    text = bearer_text(header)
    token = None if text is None else tokens.find(text)
    if token is None or not token.is_valid(time.time()):
        error = ', error="invalid_token"' if header else ""
        status, line = HTTPStatus.UNAUTHORIZED, "metrics need a bearer token"
    elif Scope.METRICS not in token.scopes:
        error = ', error="insufficient_scope", scope="metrics"'
        status, line = HTTPStatus.FORBIDDEN, "metrics need the scope metrics"
    else:
        return None
    challenge = ("WWW-Authenticate", f'Bearer realm="dragoman"{error}')
    return lambda start_response: _plain(start_response, status, line, challenge)


def _plain(
    start_response: Callable[..., Any], status: HTTPStatus, line: str, *more: tuple[str, str]
) -> Iterable[bytes]:
    body = f"{line}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *more]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
