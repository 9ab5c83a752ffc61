"""What Prometheus is told. Labels come from closed sets: models, methods, status codes, graphs, reasons."""

import collections
import time
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.registry import Collector

from dragoman.server.bundle.graph_names import MEASURED_GRAPHS
from dragoman.server.errors import NOT_LOADED_REASONS
from dragoman.server.operations.collectors import (
    METRIC_PREFIX,
    ArrivalCollector,
    CountingPrefixCache,
    LastRequestCollector,
    OccupancyCollector,
    OccupiedEngine,
    PhaseCollector,
    PrefixCacheCollector,
    StepCollector,
    VersionStateCollector,
)
from dragoman.server.operations.limits import LimitsCollector, build_info
from dragoman.server.operations.merging import MergedRegistry
from dragoman.server.operations.processes import OwnProcessCollector, ProcessesCollector
from dragoman.server.operations.shared_values import ValueWriter
from dragoman.server.security.credentials import CREDENTIAL_KINDS

__all__ = [
    "METRIC_PREFIX",
    "SPAN_RESULTS",
    "UNKNOWN_MODEL",
    "Exemplar",
    "Metrics",
    "ModelMetrics",
    "RejectionReason",
    "Stage",
]

RejectionReason = Literal[
    "unauthenticated", "not_permitted", "late", "too_many_calls", "client_calls", "client_tokens", "no_message",
    "invalid", "draining", "no_time", "queue_full", "deadline",
]  # fmt: skip
Stage = Literal["arrival", "admission", "queue", "running"]
"""Where a call is refused or given up: before its message is read, before it is queued, while it waits for a slot, or
between two steps."""
ARRIVAL_REASONS: tuple[RejectionReason, ...] = (
    "unauthenticated",
    "not_permitted",
    "late",
    "too_many_calls",
    "client_calls",
    "client_tokens",
    "no_message",
)
"""Of calls without the right credentials, from a caller that lacks the scope, late when they were taken up, too many at
one time of all clients or of one, from a client that owes tokens, or without a whole message (the client left, or the
message is longer than gRPC takes)."""
ADMISSION_REASONS: tuple[RejectionReason, ...] = ("invalid", "draining", "no_time", "queue_full", "deadline")
"""Of calls that break a rule or come while the server stops, for which there is no time or no room, or whose deadline
passed while they were tokenised."""
SPAN_RESULTS = ("exported", "failed", "dropped", "over_limit")
"""The collector took a span, did not, or the queue before it was full."""
UNKNOWN_MODEL = "unknown"
"""Label of calls for a model that is not served, and of calls whose message was not read."""

_Collector = TypeVar("_Collector", bound=Collector)

Exemplar: TypeAlias = dict[str, str]
"""Names the trace of a call that a histogram's bucket counts."""

# fmt: off
_LATENCY_BUCKETS = (  # a call takes 4 ms to seconds: there a bucket's bounds are a factor of two apart at most
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 3.0,
    5.0, 10.0, 30.0, 60.0,
)
_TOKEN_BUCKETS = (  # a step takes 0.1 to 100 ms
    5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 7.5e-3, 1e-2, 2e-2, 3e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
)
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# fmt: on


class Metrics:
    """All series of one process, on a registry of their own.

    Attributes:
        registry: this process's series.
        page: what a scrape gets: these series, with those of the server's other fronts added.
        processes: watches what each process of the server takes.
    """

    def __init__(self, cpu_limit_cores: float) -> None:
        self.registry = CollectorRegistry()
        self.page = MergedRegistry(self.registry)
        self._read_at_scrape: list[Collector] = []
        self.registry.register(OwnProcessCollector())
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        self.requests = self._counter("requests", "Calls that ended.", ["model", "method", "code"])
        self.version_requests = self._counter(
            "version_requests",
            "Calls that a version of a model took and that ended.",
            ["model", "version", "code"],
        )
        self.rejected = self._counter(
            "rejected_requests",
            "Calls that were refused, or given up when their deadline passed.",
            ["model", "stage", "reason"],
        )
        self.input_tokens = self._counter("input_tokens", "Tokens of accepted inputs.", ["model"])
        self.unknown_input_tokens = self._counter(
            "unknown_input_tokens", "Those that stand for characters the vocabulary lacks.", ["model"]
        )
        self.output_tokens = self._counter("output_tokens", "Tokens of finished answers.", ["model"])

        self.request_duration = self._histogram(
            "request_duration_seconds", "From a call's start to its end.", ["model", "method"]
        )
        self.request_seconds = self._counter(
            "request_seconds", "Time from start to end of calls that ended.", ["model", "method", "code"]
        )
        self.preparation_seconds = self._counter(
            "preparation_seconds", "Time of checking and tokenizing the texts of calls.", ["model"]
        )
        self.answer_seconds = self._counter(
            "answer_seconds", "Time of making answers of tokens, once all are there.", ["model"]
        )
        self.inference_duration = self._histogram(
            "inference_duration_seconds", "From an answered input's first step to its last."
        )
        self.queue_duration = self._histogram(
            "queue_duration_seconds", "How long an input waited for a slot."
        )
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From an input's arrival to its first token."
        )
        self.time_per_output_token = self._histogram(
            "time_per_output_token_seconds",
            "Mean time for a token of an answer, after the first ones.",
            buckets=_TOKEN_BUCKETS,
        )
        self.step_duration = StepCollector(
            "step_duration_seconds",
            "One run of a graph over the rows of a lane.",
            ["model", "graph"],
            _TOKEN_BUCKETS,
        )
        self.batch_rows = StepCollector(
            "batch_rows", "Rows in one run of a decode graph.", ["model"], _ROW_BUCKETS
        )
        for collector in (self.step_duration, self.batch_rows):
            self.read_at_scrape(collector)

        self.failed_steps = self._counter(
            "failed_steps", "Steps of lanes that raised an error; the log has it.", ["model"]
        )
        self.model_info = self._gauge(
            "model_info",
            "Models being served; always 1.",
            ["model", "version", "task", "precision", "provider"],
        )
        self.model_load_duration = self._gauge(
            "model_load_duration_seconds",
            "From reading the bundle to its golden examples agreeing.",
            ["model"],
        )
        self.models_not_loaded = self._gauge(
            "models_not_loaded", "What lies in the models folder and is not served.", ["reason"]
        )
        for not_loaded in NOT_LOADED_REASONS:
            self.models_not_loaded.labels(not_loaded)
        self.credential_reloads = self._counter(
            "credential_reloads",
            "Times that changed files of credentials were read again.",
            ["kind", "result"],
        )
        for kind in CREDENTIAL_KINDS:
            for result in ("ok", "failed"):
                self.credential_reloads.labels(kind, result)
        self.certificate_expiry = self._gauge(
            "certificate_expiry_timestamp_seconds", "When the certificate that is used ends.", ["certificate"]
        )
        self.threads = self._gauge("threads", "Threads that compute, over all models.")
        self.trace_spans = self._counter(
            "trace_spans", "Spans of traced calls, by what became of them.", ["result"]
        )
        for result in SPAN_RESULTS:
            self.trace_spans.labels(result)
        self._show_machine(cpu_limit_cores)
        self.drain_cancelled_calls = self._counter(
            "drain_cancelled_calls", "Calls that a stop cut off: they outlasted drain_timeout_s."
        )
        self._drain_deadline = self._gauge(
            "drain_deadline_timestamp_seconds",
            "When the last calls of a server that drains are cut off; 0 before it drains.",
        )

        self._rejections: dict[tuple[str, RejectionReason], Counter] = {}
        for reason in ARRIVAL_REASONS:
            self.rejected.labels(UNKNOWN_MODEL, "arrival", reason)
        self.last_requests = LastRequestCollector()
        self.read_at_scrape(self.last_requests)
        self._arrivals = ArrivalCollector()
        self.read_at_scrape(self._arrivals)
        self._occupancy = OccupancyCollector()
        self.read_at_scrape(self._occupancy)
        self._phase = self._of_server(PhaseCollector())
        self._version_states = self._of_server(VersionStateCollector())
        self.processes = self._of_server(ProcessesCollector(METRIC_PREFIX))
        self._prefix_caches = PrefixCacheCollector()
        self.read_at_scrape(self._prefix_caches)

    def count_rejected(self, model: str, reason: RejectionReason) -> None:
        """A call was refused at its arrival, or before it was queued."""
        series = self._rejections.get((model, reason))
        if series is None:
            stage: Stage = "arrival" if reason in ARRIVAL_REASONS else "admission"
            series = self._rejections[model, reason] = self.rejected.labels(model, stage, reason)
        series.inc()

    def read_at_scrape(self, collector: Collector) -> None:
        """Have a collector of this server asked at every scrape."""
        self.registry.register(collector)
        self._read_at_scrape.append(collector)

    def publish(self, writer: ValueWriter) -> None:
        """Write what is read at a scrape for the process that is scraped. The other series are there already."""
        writer.publish(family for collector in self._read_at_scrape for family in collector.collect())

    def for_model(self, name: str, task: str) -> "ModelMetrics":
        """The series of one model; its labels exist from now on, at zero."""
        return ModelMetrics(self, name, task)

    def expect_calls(self, model: str, methods: Iterable[str]) -> None:
        """Have the series of a model's methods from now on: a rate needs one that was there before the first call."""
        for method in methods:
            self.requests.labels(model, method, "OK")
            self.request_seconds.labels(model, method, "OK")
            self.request_duration.labels(model, method)

    def show_models(self, states: Iterable[tuple[str, str, str]], not_loaded: Iterable[str]) -> None:
        """Tell the state of each version, by model and version, and how much is not loaded, a reason for each."""
        self._version_states.states = tuple(states)
        counts = collections.Counter(not_loaded)
        for reason in NOT_LOADED_REASONS:
            self.models_not_loaded.labels(reason).set(counts[reason])

    def watch(self, name: str, engine: OccupiedEngine) -> None:
        """Read the engine's occupancy at every scrape. Those of several versions of a model are added up."""
        self._occupancy.watch(name, engine)

    def unwatch(self, name: str, engine: OccupiedEngine) -> None:
        """Read the engine's occupancy no longer."""
        self._occupancy.unwatch(name, engine)

    def watch_phase(self, read: Callable[[], str]) -> None:
        """Read at every scrape what the server does with calls."""
        self._phase.read = read

    def show_drain(self, seconds: float) -> None:
        """The server begins to drain, and cuts off in so many seconds what still runs."""
        self._drain_deadline.set(time.time() + seconds)

    def watch_arrivals(
        self, count_started: Callable[[], int | None], count_taken_up: Callable[[], int]
    ) -> None:
        """Read both counts of calls at every scrape, from the thread that scrapes."""
        self._arrivals.count_started, self._arrivals.count_taken_up = count_started, count_taken_up

    def watch_prefix_cache(self, name: str, cache: CountingPrefixCache) -> None:
        """Read a generation model's prefix cache at every scrape. Those of several versions are added up."""
        self._prefix_caches.watch(name, cache)

    def unwatch_prefix_cache(self, name: str, cache: CountingPrefixCache) -> None:
        """Read the cache no longer; what it has counted stays."""
        self._prefix_caches.unwatch(name, cache)

    def _show_machine(self, cpu_limit_cores: float) -> None:
        """What does not change while the server runs, and what its limits cost."""
        self._gauge("cpu_limit_cores", "Cores this process may use.").set(cpu_limit_cores)
        self._of_server(LimitsCollector(METRIC_PREFIX))
        built_of = build_info()
        self._gauge("build_info", "What this server is made of; always 1.", built_of).labels(**built_of).set(
            1
        )

    def _of_server(self, collector: _Collector) -> _Collector:
        """Have a collector asked at every scrape in the process that is scraped, and not in other fronts."""
        self.registry.register(collector)
        return collector

    def _counter(self, name: str, help_text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, help_text, labels, namespace=METRIC_PREFIX, registry=self.registry)

    def _gauge(self, name: str, help_text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(name, help_text, labels, namespace=METRIC_PREFIX, registry=self.registry)

    def _histogram(
        self,
        name: str,
        help_text: str,
        labels: Iterable[str] = ("model",),
        buckets: Iterable[float] = _LATENCY_BUCKETS,
    ) -> Histogram:
        return Histogram(
            name, help_text, labels, namespace=METRIC_PREFIX, registry=self.registry, buckets=tuple(buckets)
        )


class ModelMetrics:
    """One model's series, looked up once; safe to call from any thread."""

    def __init__(self, metrics: Metrics, name: str, task: str) -> None:
        self._input_tokens = metrics.input_tokens.labels(name)
        self._unknown_input_tokens = metrics.unknown_input_tokens.labels(name)
        self._output_tokens = metrics.output_tokens.labels(name)
        self._preparation_seconds = metrics.preparation_seconds.labels(name)
        self._answer_seconds = metrics.answer_seconds.labels(name)
        self._inference_duration = metrics.inference_duration.labels(name)
        self._queue_duration = metrics.queue_duration.labels(name)
        self._time_to_first_token = metrics.time_to_first_token.labels(name)
        self._time_per_output_token = metrics.time_per_output_token.labels(name)
        self._batch_rows = metrics.batch_rows.labels(name)
        self._name, self._step_duration = name, metrics.step_duration
        self._steps = {graph: metrics.step_duration.labels(name, graph) for graph in MEASURED_GRAPHS[task]}
        self._failed_steps = metrics.failed_steps.labels(name)
        self._late: dict[Stage, Counter] = {
            stage: metrics.rejected.labels(name, stage, "deadline")
            for stage in ("admission", "queue", "running")
        }
        for reason in ADMISSION_REASONS:
            metrics.rejected.labels(name, "admission", reason)

    def observe_step(self, graph: str, seconds: float, rows: int) -> None:
        """One run of a graph."""
        if graph not in self._steps:  # a graph that is new to this list is measured too
            self._steps[graph] = self._step_duration.labels(self._name, graph)
        self._steps[graph].add(seconds)
        if graph.startswith("decode"):
            self._batch_rows.add(rows)

    def observe_failed_steps(self, num_steps: int) -> None:
        """Steps raised errors, and ended the sequences that took part in them."""
        self._failed_steps.inc(num_steps)

    def observe_accepted(self, num_input_tokens: int, num_unknown: int = 0) -> None:
        """An input was queued."""
        self._input_tokens.inc(num_input_tokens)
        if num_unknown:
            self._unknown_input_tokens.inc(num_unknown)

    def observe_preparation(self, seconds: float) -> None:
        """A call was found right, and its texts were tokenised."""
        self._preparation_seconds.inc(seconds)

    def observe_times(
        self,
        submitted_s: float,
        admitted_s: float | None,
        first_token_s: float | None,
        exemplar: Exemplar | None = None,
    ) -> None:
        """An input ended, well or not: what it waited for a slot and for its first token."""
        if admitted_s is not None:
            self._queue_duration.observe(admitted_s - submitted_s, exemplar)
        if first_token_s is not None:
            self._time_to_first_token.observe(first_token_s - submitted_s, exemplar)

    def observe_answer(
        self,
        num_output_tokens: int,
        num_first_tokens: int,
        *,
        decoding_s: float,
        inference_s: float,
        making_s: float,
        exemplar: Exemplar | None = None,
    ) -> None:
        """An input was answered.

        Args:
            num_output_tokens: of the answer.
            num_first_tokens: of them came together first: one for each sample, or what one call of several steps gave.
            decoding_s: passed between these and the last token.
            inference_s: passed between its first step and its last.
            making_s: passed since then, or since it was its turn, until it was an answer.
            exemplar: its trace, if it has one.
        """
        self._inference_duration.observe(inference_s, exemplar)
        self._answer_seconds.inc(making_s)
        self._output_tokens.inc(num_output_tokens)
        if num_output_tokens > num_first_tokens:
            self._time_per_output_token.observe(decoding_s / (num_output_tokens - num_first_tokens), exemplar)

    def observe_late(self, stage: Stage) -> None:
        """A call was given up in this stage, because its deadline had passed."""
        self._late[stage].inc()
