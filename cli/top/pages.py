"""The metrics pages of servers: fetched over HTTP, and read into samples."""

import http.client
import re
import ssl
from collections.abc import Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from dragoman.client.credentials import Credentials
from dragoman.common.errors import OperationError, UsageError

__all__ = ["DEFAULT_PORT", "Labels", "Page", "PageSource", "parsed"]

DEFAULT_PORT: Final = 8002
"""`server.metrics_port` where the configuration says nothing else."""
_MAX_BYTES: Final = 64 * 2**20
_TIMEOUT_S: Final = 5.0
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+)(:(?P<port>[0-9]{1,5}))?")

Labels = frozenset[tuple[str, str]]
Page = Mapping[str, Mapping[Labels, float]]
"""Values by the name of the series, without `dragoman_`, and by its labels."""


class PageSource:
    """The metrics page of one server.

    Attributes:
        address: HOST:PORT of the server's HTTP port.
    """

    def __init__(self, address: str, credentials: Credentials) -> None:
        """`address` is HOST or HOST:PORT.

        Raises:
            UsageError: it is not, or a file of `credentials` cannot be used.
        """
        match = _ADDRESS.fullmatch(address)
        port = DEFAULT_PORT if match is None or match["port"] is None else int(match["port"])
        if match is None or not 0 < port < 65536:
            raise UsageError(f"{address!r} is not HOST or HOST:PORT of a server's metrics")
        self.address = f"{match['host']}:{port}"
        self._host, self._port = match["host"].strip("[]"), port
        self._server_name = credentials.tls_server_name or self._host
        self._tls = _tls_context(credentials)
        self._token = credentials.token_for(self.address)

    def fetch(self) -> Page:
        """The page as it is now.

        Raises:
            OperationError: the server cannot be reached, or refuses; the message has its address.
        """
        headers = {"Accept": "text/plain;version=0.0.4", "Host": self.address}
        if self._token is not None:
            headers |= dict(self._token.metadata())
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            connection.connect()
            if self._tls is not None:
                connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=self._server_name)
            connection.request("GET", "/metrics", headers=headers)
            answer = connection.getresponse()
            content = answer.read(_MAX_BYTES)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise OperationError(f"no metrics from {self.address}: {reason}") from error
        except http.client.HTTPException as error:  # what came in its place need not be text
            raise OperationError(f"no metrics from {self.address}: it does not speak HTTP") from error
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise OperationError(f"{self.address} gives no metrics: {answer.status} {answer.reason}")
        try:
            page = parsed(content.decode())
        except ValueError as error:  # neither UTF-8 nor the text format
            raise OperationError(f"{self.address} gives no page of metrics: {error}") from error
        if "phase" not in page and "requests" not in {name.removesuffix("_total") for name in page}:
            raise OperationError(f"{self.address} gives metrics, but none of dragoman serve")
        return page


def parsed(text: str) -> Page:
    """A page in Prometheus's text format, by name and labels.

    Raises:
        ValueError: it is not in that format.
    """
    page: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("dragoman_")
            page.setdefault(name, {})[frozenset(sample.labels.items())] = sample.value
    return page


def _tls_context(credentials: Credentials) -> ssl.SSLContext | None:
    if not credentials.uses_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=credentials.tls_ca)
        if credentials.tls_cert is not None:
            context.load_cert_chain(credentials.tls_cert, credentials.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot use the files of TLS: {error}") from error
    return context
