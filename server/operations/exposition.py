"""The page of metrics as an answer over HTTP: which format, which series, and the text of OpenMetrics.

The text is as prometheus_client writes it, byte for byte, in a tenth of its time: the library looks at every letter of
every name at every scrape. A scrape of a loaded server waits for its share of the cores, so each millisecond of its own
makes it several milliseconds later.
"""

import functools
import gzip
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Registry", "metrics_app", "openmetrics_text"]

_OPENMETRICS = CONTENT_TYPE_LATEST.partition(" charset")[0]
"""The version that is written here; prometheus_client writes what else a client asks for."""
_GZIP_LEVEL = 1
"""The page of a server with one model becomes 5 kB in 0.1 ms; level 9 makes 4 kB of it in 0.7 ms."""

_Labels = tuple[tuple[str, str], ...]


class Registry(Protocol):
    """Series, as `prometheus_client.CollectorRegistry` has them."""

    def collect(self) -> Iterable[Metric]:
        """All families."""

    def restricted_registry(self, names: list[str], /) -> Any:
        """A registry of the samples that have one of `names`."""


def metrics_app(registry: Registry) -> "WSGIApplication":
    """The WSGI application that answers GET with the series of `registry`: all, or those that `name[]=` names."""

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET":
            status = HTTPStatus.METHOD_NOT_ALLOWED
            start_response(f"{status.value} {status.phrase}", [("Allow", "GET"), ("Content-Length", "0")])
            return []
        encode: Callable[[Any], bytes]
        encode, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        if content_type.startswith(_OPENMETRICS):
            encode = openmetrics_text
        names = parse_qs(environ.get("QUERY_STRING", "")).get("name[]")
        body = encode(registry if names is None else registry.restricted_registry(names))
        headers = [("Content-Type", content_type)]
        if gzip_accepted(environ.get("HTTP_ACCEPT_ENCODING", "")):
            body = gzip.compress(body, _GZIP_LEVEL)
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return app


def openmetrics_text(registry: Registry) -> bytes:
    """Returns all series in OpenMetrics 1.0.

    https://prometheus.io/docs/specs/om/open_metrics_spec/ has the format. Names have to be letters, digits and
    underscores, as all are here; samples have no timestamps.
    """
    lines: list[str] = []
    for family in registry.collect():
        lines.append(_head(family.name, family.documentation, family.type, family.unit))
        lines += map(_line, family.samples)
    lines.append("# EOF\n")
    return "".join(lines).encode()


def _line(sample: Sample) -> str:
    line = _series(sample.name, tuple(sample.labels.items())) + _number(sample.value)
    if sample.exemplar is None:
        return f"{line}\n"
    return f"{line}{_exemplar(sample.exemplar)}\n"


@functools.lru_cache(maxsize=4096)
def _head(name: str, documentation: str, kind: str, unit: str) -> str:
    unit_line = f"# UNIT {name} {unit}\n" if unit else ""
    return f"# HELP {name} {_escaped(documentation)}\n# TYPE {name} {kind}\n{unit_line}"


@functools.lru_cache(maxsize=65_536)  # label sets are closed
def _series(name: str, labels: _Labels) -> str:
    """The part of a sample's line that stays the same."""
    return f"{name}{_braces(labels)} "


def _exemplar(exemplar: Exemplar) -> str:
    text = f" # {_braces(tuple(exemplar.labels.items())) or '{}'} {_number(exemplar.value)}"
    return text if exemplar.timestamp is None else f"{text} {exemplar.timestamp}"


def _braces(labels: _Labels) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


_number: Callable[[float], str] = floatToGoString
