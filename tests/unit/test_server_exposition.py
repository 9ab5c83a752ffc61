"""The page of metrics: formats, chosen series, and the text of OpenMetrics beside prometheus_client's."""

import gzip
from wsgiref.util import setup_testing_defaults

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as library

from dragoman.server.operations.exposition import metrics_app, openmetrics_text
from dragoman.server.operations.metrics import Metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain"
)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("calls", "Calls.", ["model"], registry=registry).labels("dates").inc(3)
    Gauge("slots", "Slots.", registry=registry).set(64)
    return registry


def ask(registry: CollectorRegistry, **environ: str) -> tuple[str, dict[str, str], bytes]:
    asked: dict[str, object] = {"PATH_INFO": "/metrics", **environ}
    setup_testing_defaults(asked)
    answer: list[tuple[str, dict[str, str]]] = []
    app = metrics_app(registry)
    body = app(asked, lambda status, headers, exc_info=None: answer.append((status, dict(headers))))  # type: ignore[arg-type]
    return *answer[0], b"".join(body)


def library_text(registry: CollectorRegistry) -> bytes:
    return bytes(library.generate_latest(registry))  # type: ignore[no-untyped-call]


@given(
    st.text(max_size=20),
    st.floats(),
    st.dictionaries(st.sampled_from(["trace_id", "span"]), st.text(max_size=40), max_size=2),
    st.text(max_size=20),
)
def test_openmetrics_is_as_the_library_writes_it(
    label: str, value: float, exemplar: dict[str, str], documentation: str
) -> None:
    registry = CollectorRegistry()
    Gauge("level", documentation, ["model", "b"], registry=registry).labels(label, "x").set(value)
    counter = Counter("calls", documentation, ["model"], registry=registry)
    histogram = Histogram("seconds", "Time.", ["model"], unit="seconds", registry=registry, buckets=(0.1, 1))
    counter.labels(label).inc(2)
    histogram.labels(label).observe(0.5, exemplar)
    Summary("sizes", "Sizes.", registry=registry).observe(value)
    Enum("state", "State.", states=["on", "off"], registry=registry).state("off")
    Info("build", "Build.", registry=registry).info({"version": label})
    assert openmetrics_text(registry) == library_text(registry)


def test_the_whole_page_of_a_server_is_as_the_library_writes_it() -> None:
    metrics = Metrics(2.0)
    metrics.for_model("dates", "translation").observe_times(0.0, 0.01, 0.02, {"trace_id": "a" * 32})
    metrics.expect_calls("dates", ["Translate"])
    families = list(metrics.page.collect())

    class Held(CollectorRegistry):
        def collect(self):  # type: ignore[no-untyped-def]
            return iter(families)

    text = openmetrics_text(Held())
    assert text == library_text(Held())
    assert b' # {trace_id="aaaa' in text


def test_prometheus_gets_openmetrics_and_others_get_text(registry: CollectorRegistry) -> None:
    status, headers, body = ask(registry, HTTP_ACCEPT=PROMETHEUS)
    assert (status, body) == ("200 OK", library_text(registry))
    assert headers["Content-Type"].startswith(OPENMETRICS)
    assert headers["Content-Length"] == str(len(body))
    _, headers, body = ask(registry)
    assert body == generate_latest(registry)
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_a_page_is_packed_for_those_that_unpack_it(registry: CollectorRegistry) -> None:
    _, headers, body = ask(registry, HTTP_ACCEPT=OPENMETRICS, HTTP_ACCEPT_ENCODING="gzip, deflate")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == library_text(registry)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_some_names_may_be_asked_for(registry: CollectorRegistry, accept: str) -> None:
    _, _, body = ask(registry, HTTP_ACCEPT=accept, QUERY_STRING="name[]=slots")
    assert [line for line in body.decode().splitlines() if not line.startswith("#")] == ["slots 64.0"]


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS"])
def test_the_page_can_only_be_read(registry: CollectorRegistry, method: str) -> None:
    status, headers, body = ask(registry, REQUEST_METHOD=method)
    assert (status, headers["Allow"], body) == ("405 Method Not Allowed", "GET", b"")
