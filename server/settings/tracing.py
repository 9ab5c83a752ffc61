"""Settings of the section [tracing]: which calls are traced, and where their spans go."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from dragoman.common.settings import Settings

__all__ = ["TracingSettings"]

_MAX_STEP_INTERVAL = 1_000_000
_MAX_SPANS = 1_000_000


def _check_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError("must be of the form http://HOST:PORT, or https://HOST:PORT for TLS")
    return endpoint


class TracingSettings(Settings):
    """OpenTelemetry: spans of sampled calls go to a collector over OTLP. It needs the extra `dragoman[tracing]`. The
    environment variables of OpenTelemetry (`OTEL_...`) hold where a key is left out. docs/tracing.md has the spans.
    """

    enabled: bool = False
    """Whether calls are traced."""
    endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    """Address of the collector, for OTLP over gRPC: http://HOST:PORT, or https://HOST:PORT for TLS. Left out:
    `OTEL_EXPORTER_OTLP_ENDPOINT`, else http://localhost:4317."""
    headers_file: Path | None = None
    """File with a line `name=value` for each header that the collector wants, such as an API key. Left out:
    `OTEL_EXPORTER_OTLP_HEADERS`."""
    service_name: str | None = None
    """Name of this service. Left out: `OTEL_SERVICE_NAME`, else dragoman."""
    sampling_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Part of the calls that are traced. A call that comes with a trace context (`traceparent`) is traced exactly if
    its caller's span is, up to `max_asked_spans_a_second`. Left out: `OTEL_TRACES_SAMPLER`, else 0.01."""
    max_asked_spans_a_second: Annotated[float, Field(ge=0, le=_MAX_SPANS)] = 500.0
    """Most spans a second, in the long run, of calls that are traced because their callers' spans are: no caller can
    have the server trace everything. Beyond it such a call is traced as often as one without a trace context. 0: no
    trace context decides. Several fronts have equal shares."""
    step_interval: Annotated[int, Field(ge=1, le=_MAX_STEP_INTERVAL)] = 16
    """Each so many-th decoding step of a traced input gets a span, up to 64 of an input."""
