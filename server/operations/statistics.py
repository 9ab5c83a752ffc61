"""Counts and times of the calls for a model, from the same counts as /metrics."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from dragoman.server.operations.metrics import METRIC_PREFIX, Metrics

__all__ = ["Durations", "ModelStatistics", "read_statistics"]


@dataclass(slots=True)
class Durations:
    """How often something happened, and how long it took in all."""

    count: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class ModelStatistics:
    """The statistics of all versions of a model since the server's start, in all its fronts.

    Attributes:
        succeeded: calls that were answered.
        failed: calls that ended in any other way, refused ones included.
        queued: inputs that got a slot, and what they waited for it.
        inferred: inputs that were answered, from the first step to the last.
        preparing_s: what checking and tokenizing texts took.
        making_s: what making answers of tokens took.
        num_runs: runs of decode graphs; each is for the rows of many inputs.
        last_request_s: when the last call came, since 1970; 0: none came.
    """

    succeeded: Durations = field(default_factory=Durations)
    failed: Durations = field(default_factory=Durations)
    queued: Durations = field(default_factory=Durations)
    inferred: Durations = field(default_factory=Durations)
    preparing_s: float = 0.0
    making_s: float = 0.0
    num_runs: float = 0.0
    last_request_s: float = 0.0


def read_statistics(metrics: Metrics, methods: Collection[str]) -> Mapping[str, ModelStatistics]:
    """Returns the figures of each model, from calls of `methods`. It takes milliseconds: call it in a thread."""
    read = (
        metrics.requests,
        metrics.request_seconds,
        metrics.queue_duration,
        metrics.inference_duration,
        metrics.preparation_seconds,
        metrics.answer_seconds,
        metrics.batch_rows,
        metrics.last_requests,
    )
    statistics: dict[str, ModelStatistics] = {}
    families: Iterable[Metric] = [family for collector in read for family in collector.collect()]
    for family in metrics.page.merged(families):
        for sample in family.samples:
            if sample.labels.get("method", "") in ("", *methods):
                _add(statistics.setdefault(sample.labels["model"], ModelStatistics()), sample)
    return statistics


def _add(statistics: ModelStatistics, sample: Sample) -> None:
    name, value = sample.name.removeprefix(f"{METRIC_PREFIX}_"), sample.value
    calls = statistics.succeeded if sample.labels.get("code") == "OK" else statistics.failed
    counts = {
        "requests_total": calls,
        "queue_duration_seconds_count": statistics.queued,
        "inference_duration_seconds_count": statistics.inferred,
    }
    sums = {
        "request_seconds_total": calls,
        "queue_duration_seconds_sum": statistics.queued,
        "inference_duration_seconds_sum": statistics.inferred,
    }
    if name in counts:
        counts[name].count += value
    elif name in sums:
        sums[name].seconds += value
    elif name == "preparation_seconds_total":
        statistics.preparing_s += value
    elif name == "answer_seconds_total":
        statistics.making_s += value
    elif name == "batch_rows_count":
        statistics.num_runs += value
    elif name == "last_request_timestamp_seconds":
        statistics.last_request_s = value
