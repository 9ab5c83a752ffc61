"""What two readings of a metrics page say about the time between them. Pure: pages and times are handed in."""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dragoman.cli.top.pages import Labels, Page

__all__ = ["History", "ModelFigures", "ServerFigures", "models_of", "quantile", "server_of"]

Buckets = Mapping[float, float]
"""Cumulated counts by their upper bounds, `math.inf` included."""


@dataclass(frozen=True, slots=True)
class Span:
    """Two readings of one page, oldest first, and the seconds between them."""

    before: Page
    now: Page
    seconds: float

    def rate(self, name: str, **labels: str) -> float:
        """How much the counter grew in a second, over all series with these labels."""
        return self._growth(name, labels) / self.seconds if self.seconds else 0.0

    def failed_rate(self, name: str, **labels: str) -> float:
        """As `rate`, of the series whose code is not OK."""
        return self.rate(name, **labels) - self.rate(name, **labels, code="OK")

    def gauge(self, name: str, **labels: str) -> float | None:
        """The sum of the gauge's series with these labels; None where there is none."""
        values = [value for _, value in _matching(self.now, name, labels)]
        return sum(values) if values else None

    def buckets(self, name: str, **labels: str) -> Buckets:
        """What came into each bucket of a histogram."""
        counts: dict[float, float] = defaultdict(float)
        before = self.before.get(f"{name}_bucket", {})
        for series, value in _matching(self.now, f"{name}_bucket", labels):
            counts[float(dict(series)["le"])] += value - before.get(series, 0.0)
        return counts

    def observed(self, name: str, **labels: str) -> tuple[float, float]:
        """How much a histogram counted, and the sum of that."""
        return self._growth(f"{name}_count", labels), self._growth(f"{name}_sum", labels)

    def _growth(self, name: str, labels: Mapping[str, str]) -> float:
        before = self.before.get(name, {})
        return sum(value - before.get(series, 0.0) for series, value in _matching(self.now, name, labels))


class History:
    """The readings of one server's page within a window of time."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._readings: deque[tuple[float, Page]] = deque()

    def add(self, now_s: float, page: Page) -> None:
        """Take a reading. The readings of a process that has been replaced are forgotten: its counters began anew."""
        if self._readings and _start_of(page) != _start_of(self._readings[-1][1]):
            self._readings.clear()
        self._readings.append((now_s, page))
        while len(self._readings) > 2 and self._readings[1][0] <= now_s - self._window_s:
            self._readings.popleft()

    def span(self) -> Span | None:
        """From the oldest reading to the newest one; None without any."""
        if not self._readings:
            return None
        (before_s, before), (now_s, now) = self._readings[0], self._readings[-1]
        return Span(before, now, now_s - before_s)


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model on all servers. Seconds; rates are for a second; None: nothing to tell it by.

    Attributes:
        latency_s: p50, p95 and p99 of calls that ended.
        oldest_waiting_s: how long the input waits that waits longest.
        batch_rows: mean number of rows in a run of a decode graph, over the runs of all servers.
        failed: calls that ended with another code than OK, the refused ones included.
    """

    model: str
    versions: tuple[str, ...]
    calls: float
    failed: float
    refused: float
    tokens: float
    latency_s: tuple[float | None, float | None, float | None]
    first_token_s: float | None
    waited_s: float | None
    running: float
    waiting: float
    oldest_waiting_s: float | None
    slots_used: float
    slots_total: float
    batch_rows: float | None


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One server. Cores and bytes; rates are for a second; None: the server does not say it."""

    phase: str
    version: str | None
    up_s: float | None
    cpu_cores: float
    cpu_limit_cores: float | None
    memory_bytes: float | None
    memory_limit_bytes: float | None
    calls: float
    running: float
    waiting: float
    slots_used: float
    slots_total: float


def server_of(span: Span, wall_s: float) -> ServerFigures:
    """What one server did; `wall_s` is now, in seconds since the epoch."""
    start_s = _start_of(span.now)
    version = [dict(series).get("version") for series in span.now.get("build_info", {})]
    phases = [dict(series)["phase"] for series, value in span.now.get("phase", {}).items() if value]
    return ServerFigures(
        phase=phases[0] if phases else "?",
        version=version[0] if version else None,
        up_s=None if start_s is None else max(0.0, wall_s - start_s),
        cpu_cores=_cpu_seconds(span) / (span.seconds or math.inf),
        cpu_limit_cores=span.gauge("cpu_limit_cores"),
        memory_bytes=span.gauge("process_pss_bytes"),
        memory_limit_bytes=span.gauge("memory_limit_bytes"),
        calls=span.rate("requests_total"),
        running=span.gauge("requests_running") or 0.0,
        waiting=span.gauge("requests_waiting") or 0.0,
        slots_used=span.gauge("slots_used") or 0.0,
        slots_total=span.gauge("slots_total") or 0.0,
    )


def models_of(spans: Sequence[Span]) -> list[ModelFigures]:
    """What all servers together did, model by model, in the order of their names."""
    names = {dict(series)["model"] for span in spans for series in span.now.get("slots_total", {})}
    return [_model(name, spans) for name in sorted(names)]


def _model(name: str, spans: Sequence[Span]) -> ModelFigures:
    def gauge(metric: str) -> float:
        return sum(span.gauge(metric, model=name) or 0.0 for span in spans)

    def rate(metric: str) -> float:
        return sum(span.rate(metric, model=name) for span in spans)

    def buckets(metric: str) -> Buckets:
        counts: dict[float, float] = defaultdict(float)
        for span in spans:
            for bound, count in span.buckets(metric, model=name).items():
                counts[bound] += count
        return counts

    latencies, first_tokens = buckets("request_duration_seconds"), buckets("time_to_first_token_seconds")
    oldest = [span.gauge("oldest_waiting_seconds", model=name) for span in spans]
    versions = {
        dict(series)["version"]
        for span in spans
        for series, _ in _matching(span.now, "model_info", {"model": name})
    }
    runs = [span.observed("batch_rows", model=name) for span in spans]
    num_runs, num_rows = (sum(each) for each in zip(*runs, strict=True))
    return ModelFigures(
        model=name,
        versions=tuple(sorted(versions, key=lambda version: (len(version), version))),
        calls=rate("requests_total"),
        failed=sum(span.failed_rate("requests_total", model=name) for span in spans),
        refused=rate("rejected_requests_total"),
        tokens=rate("output_tokens_total"),
        latency_s=(quantile(0.5, latencies), quantile(0.95, latencies), quantile(0.99, latencies)),
        first_token_s=quantile(0.95, first_tokens),
        waited_s=quantile(0.95, buckets("queue_duration_seconds")),
        running=gauge("requests_running"),
        waiting=gauge("requests_waiting"),
        oldest_waiting_s=max((each for each in oldest if each is not None), default=None),
        slots_used=gauge("slots_used"),
        slots_total=gauge("slots_total"),
        batch_rows=num_rows / num_runs if num_runs else None,
    )


def quantile(q: float, buckets: Buckets) -> float | None:
    """The value below which the share `q` of what was counted lies; None where nothing was.

    As Prometheus's `histogram_quantile`: straight lines within a bucket, and the highest finite bound for what lies
    above it (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile).
    """
    total = buckets.get(math.inf, 0.0)
    if total <= 0:
        return None
    rank, low, below = q * total, 0.0, 0.0
    for bound in sorted(buckets):
        if math.isinf(bound):
            break
        if buckets[bound] >= rank and buckets[bound] > below:
            return low + (bound - low) * (rank - below) / (buckets[bound] - below)
        low, below = bound, buckets[bound]
    return low


def _matching(page: Page, name: str, labels: Mapping[str, str]) -> Iterable[tuple[Labels, float]]:
    wanted = labels.items()
    return [(series, value) for series, value in page.get(name, {}).items() if wanted <= series]


def _cpu_seconds(span: Span) -> float:
    """CPU time of all processes. One that was replaced meanwhile counts from its start."""
    before = span.before.get("process_cpu_seconds_total", {})
    return sum(
        value - before.get(series, 0.0) if value >= before.get(series, 0.0) else value
        for series, value in span.now.get("process_cpu_seconds_total", {}).items()
        if series  # the one without a label is the first process again
    )


def _start_of(page: Page) -> float | None:
    """When the server's first process started, in seconds since the epoch."""
    return page.get("process_start_time_seconds", {}).get(frozenset())
