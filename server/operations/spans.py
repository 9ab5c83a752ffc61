"""Spans of sampled calls, exported over OTLP by OpenTelemetry's own SDK.

Nothing here waits for the collector: spans go through a bounded queue to a thread of the SDK's. Spans for which there
is no room, and those that the collector does not take, are counted and forgotten.
"""

import logging
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import get_global_textmap
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_QUEUE_SIZE,
    OTEL_TRACES_SAMPLER,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from prometheus_client import Counter

from dragoman.server.errors import CredentialsError
from dragoman.server.security.files import read_file
from dragoman.server.settings.tracing import TracingSettings

__all__ = ["CallSpans", "SpanAllowance", "Tracing"]

FLUSH_S = 1.0
"""How long the end of the server waits for the collector to take the last spans."""
MAX_SPANS = 256
"""Of one call. They are made in one turn of the event loop: some 4 ms."""
DEFAULT_RATIO = 0.01
DEFAULT_QUEUE_SIZE = 2048
"""Spans, as OpenTelemetry's specification has it."""

# fmt: off
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)
"""gRPC's status codes, each in the place of its number."""
# fmt: on
_SERVER_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Codes that are a server's errors, by OpenTelemetry's conventions for gRPC. The others are the caller's."""
_NO_CONTEXT = Context()
_LOGGERS_OF_CONTEXTS = ("opentelemetry.trace", "opentelemetry.baggage")
"""They would warn of what is wrong with a caller's trace context, and repeat it."""
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")

Attributes = Mapping[str, str | int | float | bool]


class SpanAllowance:
    """Spans a second of calls that are traced because their callers are: a bucket that may owe. Pure.

    A call is traced while anything is in the bucket, and pays for its spans when it ends.
    """

    def __init__(self, spans_a_second: float) -> None:
        """The bucket is full at first: it holds what comes in a second."""
        self._spans_a_second = spans_a_second
        self._balance = spans_a_second
        self._seen_s = 0.0

    def is_left(self, now_s: float) -> bool:
        """Whether a call may be traced now."""
        filled = self._balance + max(0.0, now_s - self._seen_s) * self._spans_a_second
        self._balance, self._seen_s = min(self._spans_a_second, filled), max(now_s, self._seen_s)
        return self._balance > 0

    def pay(self, num_spans: int) -> None:
        """Take spans that were made out of the bucket."""
        self._balance -= num_spans


class CallSpans:
    """The spans of one sampled call, from its begin to its end. All times are on `time.monotonic()`.

    Attributes:
        trace_id: of the call's trace, in hexadecimal digits.
        exemplar: names the trace and the call's span in a metric.
        step_interval: each so many-th decoding step gets a span.
    """

    def __init__(
        self,
        tracer: Tracer,
        span: Span,
        epoch_ns: int,
        step_interval: int,
        allowance: SpanAllowance | None = None,
    ) -> None:
        """`span` is the call's own. `time.monotonic()` was 0 at `epoch_ns` on the wall clock.

        All spans are paid from `allowance`; None: they need not be paid.
        """
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.exemplar = {"trace_id": self.trace_id, "span_id": f"{context.span_id:016x}"}
        self.step_interval = step_interval
        self._tracer = tracer
        self._span = span
        self._epoch_ns = epoch_ns
        self._allowance = allowance
        self._num_parts = 0

    def set(self, **attributes: str | float) -> None:
        """Say more of the call; never what it says itself."""
        for name, value in attributes.items():
            self._span.set_attribute(f"dragoman.{name}", value)

    def add(
        self,
        name: str,
        started_s: float,
        ended_s: float,
        attributes: Attributes | None = None,
        parent: Span | None = None,
    ) -> Span:
        """Returns a span of a part of the call that is over; its own parts may be added to it.

        Parts after the first `MAX_SPANS` are left out and counted.
        """
        self._num_parts += 1
        if self._num_parts > MAX_SPANS:
            return self._span
        span = self._tracer.start_span(
            name,
            set_span_in_context(parent or self._span, _NO_CONTEXT),
            attributes={f"dragoman.{key}": value for key, value in (attributes or {}).items()},
            start_time=_nanoseconds(self._epoch_ns, started_s),
        )
        span.end(_nanoseconds(self._epoch_ns, ended_s))
        return span

    def end(self, code: str, ended_s: float) -> None:
        """The call ends with a gRPC status code."""
        if self._allowance is not None:
            self._allowance.pay(1 + min(self._num_parts, MAX_SPANS))
        self._span.set_attribute("rpc.grpc.status_code", _CODES.index(code))
        if self._num_parts > MAX_SPANS:
            self.set(spans_left_out=self._num_parts - MAX_SPANS)
        if code in _SERVER_ERRORS:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(_nanoseconds(self._epoch_ns, ended_s))


class Tracing:
    """Makes the spans of a front's calls, and sends them."""

    def __init__(self, settings: TracingSettings, spans: Counter) -> None:
        """Export as `settings` say, or else OpenTelemetry's environment variables.

        Raises:
            CredentialsError: the file with headers cannot be used.
        """
        # It would warn of each of six tries for each batch. The last try's failure is an error, once in 20 s.
        logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").setLevel(logging.ERROR)
        for name in _LOGGERS_OF_CONTEXTS:
            logging.getLogger(name).setLevel(logging.ERROR)
        headers = None if settings.headers_file is None else _headers_of(settings.headers_file)
        self._exporter = _CountingExporter(OTLPSpanExporter(settings.endpoint, headers=headers), spans)
        self._ratio = _ratio_of(settings)
        self._provider = TracerProvider(
            # Calls that are traces of their own are sampled before they come to the SDK, which takes 4 us for each.
            sampler=None if self._ratio is None else ParentBased(ALWAYS_ON),
            resource=_resource_of(settings),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(_BoundedProcessor(self._exporter, spans))
        self._tracer = self._provider.get_tracer("dragoman.server")
        self._step_interval = settings.step_interval
        self._propagator = get_global_textmap()
        self._allowance = SpanAllowance(settings.max_asked_spans_a_second)
        self._over_limit = spans.labels("over_limit")
        # Those of W3C's trace context, unless the environment names another propagator.
        self._context_keys = frozenset(self._propagator.fields)

    def begin(
        self, path: str, metadata: Sequence[tuple[str, str | bytes]], request_id: str, begin_s: float
    ) -> CallSpans | None:
        """Begin the span of a call for the method `path`, since `begin_s`; None: the call is not sampled."""
        # The last one of a key is from the nearest sender.
        carrier = {key: value for key, value in metadata if key in self._context_keys}
        context = self._propagator.extract(carrier, Context()) if carrier else _NO_CONTEXT
        parent = get_current_span(context).get_span_context()
        has_parent = bool(carrier) and parent.is_valid
        is_asked = has_parent and parent.trace_flags.sampled
        if is_asked and not self._allowance.is_left(time.monotonic()):
            self._over_limit.inc()
            if self._ratio is None:
                return None
            has_parent = is_asked = False  # it is sampled as if nobody had asked
        if not has_parent and self._ratio is not None and random.random() >= self._ratio:  # noqa: S311
            return None
        service, _, method = path.removeprefix("/").partition("/")
        # One reading of the wall clock a call: it may jump, and children must stay inside their parents.
        epoch_ns = time.time_ns() - time.monotonic_ns()
        start_ns = _nanoseconds(epoch_ns, begin_s)
        name = f"{service}/{method}"
        span = self._tracer.start_span(name, context, kind=SpanKind.SERVER, start_time=start_ns)
        if not span.is_recording():
            return None
        span.set_attributes(
            {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "dragoman.request_id": request_id,
            }
        )
        allowance = self._allowance if is_asked else None
        return CallSpans(self._tracer, span, epoch_ns, self._step_interval, allowance)

    def close(self) -> None:
        """Send the spans that wait, within `FLUSH_S`; drop those that the collector has not taken then."""
        flushing = threading.Thread(target=self._provider.shutdown, name="flush-spans", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)
        self._exporter.shutdown()  # harmless where it is done: a try that waits is given up


class _CountingExporter(SpanExporter):
    """Counts what an exporter is given, by what becomes of it."""

    def __init__(self, exporter: SpanExporter, spans: Counter) -> None:
        self._exporter = exporter
        self._exported, self._failed = spans.labels("exported"), spans.labels("failed")
        self._is_shut = False
        self.num_taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            (self._exported if result is SpanExportResult.SUCCESS else self._failed).inc(len(spans))
        return result

    def shutdown(self) -> None:
        if not self._is_shut:
            self._is_shut = True
            self._exporter.shutdown()


class _BoundedProcessor(BatchSpanProcessor):
    """A queue that counts what it has no room for. The SDK's own would drop the oldest span, and log each one."""

    def __init__(self, exporter: _CountingExporter, spans: Counter) -> None:
        self._exporter = exporter
        self._num_given = 0
        self._max_queued = _queue_size()
        self._dropped = spans.labels("dropped")
        super().__init__(exporter, max_queue_size=self._max_queued)

    def on_end(self, span: ReadableSpan) -> None:
        if self._num_given - self._exporter.num_taken >= self._max_queued:
            self._dropped.inc()
            return
        self._num_given += 1  # on one event loop
        super().on_end(span)


def _queue_size() -> int:
    text = os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE, "")
    return int(text) if text.isdecimal() and int(text) > 0 else DEFAULT_QUEUE_SIZE


def _nanoseconds(epoch_ns: int, moment_s: float) -> int:
    return epoch_ns + round(moment_s * 1e9)


def _ratio_of(settings: TracingSettings) -> float | None:
    """The part of the calls that is sampled; None: the environment variables name a sampler."""
    if settings.sampling_ratio is None:
        return None if OTEL_TRACES_SAMPLER in os.environ else DEFAULT_RATIO
    return settings.sampling_ratio


def _resource_of(settings: TracingSettings) -> Resource:
    """What all spans say of the process, beside what the environment variables say."""
    named = {} if settings.service_name is None else {SERVICE_NAME: settings.service_name}
    resource = Resource.create({"process.pid": os.getpid(), **named})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # the SDK's default
        resource = resource.merge(Resource({SERVICE_NAME: "dragoman"}))
    return resource


def _headers_of(path: Path) -> dict[str, str]:
    """The headers that a file has.

    Raises:
        CredentialsError: it cannot be read, or a line is not of the form `name=value`.
    """
    headers = {}
    lines = read_file(path, "the file of headers").decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if (
            not equals
            or not _HEADER_NAME.fullmatch(name.lower())
            or not value.isascii()
            or not value.isprintable()
        ):
            raise CredentialsError(f"{path}, line {number}: not of the form name=value, in printable ASCII")
        headers[name.lower()] = value
    return headers
