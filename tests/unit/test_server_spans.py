"""What becomes of spans: the queue before the collector, the sampler, and the environment's say."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from dragoman.common.errors import MissingExtraError
from dragoman.server.config import load_settings
from dragoman.server.errors import CredentialsError
from dragoman.server.operations import spans
from dragoman.server.operations.metrics import SPAN_RESULTS, Metrics
from dragoman.server.operations.spans import SpanAllowance, Tracing
from dragoman.server.operations.tracing import start_tracing
from dragoman.server.settings.tracing import TracingSettings

PATH = "/dragoman.v1.TranslationService/Translate"
PATIENCE_S = 20.0


class Exporter:
    """Stands for the way to the collector."""

    def __init__(self, endpoint: str | None, headers: dict[str, str] | None) -> None:
        self.endpoint, self.headers = endpoint, headers
        self.names: list[str] = []
        self.resources: list[dict[str, object]] = []
        self.attributes: list[dict[str, object]] = []
        self.error: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.result = SpanExportResult.SUCCESS

    def export(self, given: Sequence[ReadableSpan]) -> SpanExportResult:
        self.may_go_on.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.attributes += [dict(span.attributes or {}) for span in given]
        self.names += [span.name for span in given]
        self.resources += [dict(span.resource.attributes) for span in given]
        return self.result

    def shutdown(self) -> None:
        self.may_go_on.set()


@pytest.fixture
def exporters(monkeypatch: pytest.MonkeyPatch) -> list[Exporter]:
    """Those that are made, without a network."""
    made: list[Exporter] = []

    def make(endpoint: str | None, headers: dict[str, str] | None) -> Exporter:
        made.append(Exporter(endpoint, headers))
        return made[-1]

    monkeypatch.setattr(spans, "OTLPSpanExporter", make)
    return made


def begun(metrics: Metrics, **settings: object) -> Tracing:
    return Tracing(TracingSettings.load({"enabled": True, **settings}, source="test"), metrics.trace_spans)


def counts(metrics: Metrics) -> dict[str, float]:
    values = {result: metrics.trace_spans.labels(result)._value.get() for result in SPAN_RESULTS}
    return {result: value for result, value in values.items() if value}


def call(tracing: Tracing, *children: str) -> None:
    trace = tracing.begin(PATH, (), "id", time.monotonic())
    assert trace is not None
    now_s = time.monotonic()
    for name in children:
        trace.add(name, now_s, now_s)
    trace.end("OK", now_s)


def test_codes_have_grpcs_numbers() -> None:
    assert {code: number for number, code in enumerate(spans._CODES)} == {
        code.name: code.value[0] for code in grpc.StatusCode
    }


def test_the_end_of_the_server_sends_what_waits(exporters: list[Exporter]) -> None:
    metrics = Metrics(1.0)
    tracing = begun(metrics, sampling_ratio=1.0)
    call(tracing, "queue", "encode")
    tracing.close()
    assert exporters[0].names == ["queue", "encode", PATH[1:]]
    assert counts(metrics) == {"exported": 3}


def test_a_collector_that_takes_nothing_costs_no_call_and_no_end(
    exporters: list[Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setattr(spans, "FLUSH_S", 0.2)
    metrics = Metrics(1.0)
    tracing = begun(metrics, sampling_ratio=1.0)
    [exporter] = exporters
    exporter.may_go_on.clear()
    exporter.result = SpanExportResult.FAILURE
    for _ in range(100):
        call(tracing)
    # A batch may be on its way, and a queue of 8 is full behind it.
    assert 100 - 16 <= counts(metrics)["dropped"] <= 100 - 8
    began_s = time.monotonic()
    tracing.close()
    assert time.monotonic() - began_s < 5
    assert set(counts(metrics)) <= {"dropped", "failed"}


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_a_part_of_the_calls_is_sampled(exporters: list[Exporter], ratio: float) -> None:
    tracing = begun(Metrics(1.0), sampling_ratio=ratio)
    sampled = sum(tracing.begin(PATH, (), "id", time.monotonic()) is not None for _ in range(2000))
    assert abs(sampled - 2000 * ratio) < (150 if 0 < ratio < 1 else 1)
    tracing.close()


@pytest.mark.parametrize(
    "metadata",
    [
        {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "MARKER,MARKER=,a=1,a=2"},
        {"traceparent": "MARKER"},
        {"baggage": "MARKER,=MARKER,a=%MARKER;" + "MARKER" * 2000},
        {"baggage": ",".join(["MARKER"] * 300)},
    ],
)
def test_no_trace_context_of_a_caller_enters_the_log(
    exporters: list[Exporter], caplog: pytest.LogCaptureFixture, metadata: dict[str, str]
) -> None:
    begun(Metrics(1.0), sampling_ratio=1.0).begin(PATH, tuple(metadata.items()), "id", time.monotonic())
    assert not caplog.records


ASKED = (("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),)
NOT_ASKED = (("traceparent", f"00-{'a' * 32}-{'b' * 16}-00"),)


def test_callers_have_a_bounded_number_of_spans_traced(exporters: list[Exporter]) -> None:
    metrics = Metrics(1.0)
    tracing = begun(metrics, sampling_ratio=0.0, max_asked_spans_a_second=0.001)
    trace = tracing.begin(PATH, ASKED, "id", time.monotonic())
    assert trace is not None
    assert trace.trace_id == "a" * 32
    trace.add("part", 0.0, 0.0)
    trace.end("OK", time.monotonic())  # two spans, which 2,000 s pay for
    for _ in range(3):
        assert tracing.begin(PATH, ASKED, "id", time.monotonic()) is None
    assert tracing.begin(PATH, NOT_ASKED, "id", time.monotonic()) is None
    assert counts(metrics)["over_limit"] == 3


def test_beyond_that_a_call_is_sampled_as_any_other(exporters: list[Exporter]) -> None:
    tracing = begun(Metrics(1.0), sampling_ratio=1.0, max_asked_spans_a_second=0)
    trace = tracing.begin(PATH, ASKED, "id", time.monotonic())
    assert trace is not None
    assert trace.trace_id == "a" * 32


def test_spans_are_owed_and_come_back() -> None:
    allowance = SpanAllowance(10.0)
    assert allowance.is_left(100.0)
    allowance.pay(25)
    assert not allowance.is_left(101.4)
    assert allowance.is_left(101.6)
    assert allowance.is_left(90.0)  # times of calls are not in order
    allowance.pay(2)
    assert not allowance.is_left(101.6)
    assert allowance.is_left(1000.0)
    allowance.pay(10)
    assert not allowance.is_left(1000.0)  # a pause gives one second's spans


def test_the_environment_says_what_settings_leave_out(
    exporters: list[Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    for settings, name in (({}, "theirs"), ({"service_name": "ours"}, "ours")):
        tracing = begun(Metrics(1.0), **settings)
        call(tracing)
        tracing.close()
        [resource] = exporters[-1].resources
        assert (resource["service.name"], resource["deployment.environment"]) == (name, "test")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = begun(Metrics(1.0), sampling_ratio=1.0)
    assert tracing.begin(PATH, (), "id", time.monotonic()) is None
    tracing.close()


def test_headers_are_read_from_their_file(exporters: list[Exporter], tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text("# of our collector\nX-Api-Key = a=b secret\n\ntenant=4071\n")
    begun(Metrics(1.0), headers_file=path).close()
    assert exporters[0].headers == {"x-api-key": "a=b secret", "tenant": "4071"}
    path.write_text("tenant=1\nsecret without a name\n")
    with pytest.raises(CredentialsError, match="headers, line 2: not of the form name=value") as caught:
        begun(Metrics(1.0), headers_file=path)
    assert "secret" not in str(caught.value)
    with pytest.raises(CredentialsError, match="cannot read"):
        begun(Metrics(1.0), headers_file=tmp_path / "none")


def test_tracing_that_is_off_imports_nothing_and_one_that_cannot_be_on_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics(1.0)
    assert start_tracing(load_settings().tracing, metrics.trace_spans) is None
    monkeypatch.setitem(__import__("sys").modules, "dragoman.server.operations.spans", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dragoman\[tracing\]'"):
        start_tracing(TracingSettings(enabled=True), metrics.trace_spans)


def test_a_call_has_a_bounded_number_of_spans(exporters: list[Exporter]) -> None:
    metrics = Metrics(1.0)
    tracing = begun(metrics, sampling_ratio=1.0)
    call(tracing, *["step"] * (spans.MAX_SPANS + 50))
    tracing.close()
    assert exporters[0].names.count("step") == spans.MAX_SPANS
    assert exporters[0].attributes[-1]["dragoman.spans_left_out"] == 50


def test_an_exporter_that_raises_an_error_is_counted(
    exporters: list[Exporter], caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(1.0)
    tracing = begun(metrics, sampling_ratio=1.0)
    exporters[0].error = ValueError("the channel is closed")
    call(tracing)
    tracing.close()
    assert counts(metrics) == {"failed": 1}
    assert "the channel is closed" in caplog.text
