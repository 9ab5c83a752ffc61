"""What this server may take and what it is made of: series that hardly change."""

import importlib.metadata
from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dragoman.common.cpu import throttled_seconds, throttling_files
from dragoman.common.memory import memory_limit_bytes

__all__ = ["LimitsCollector", "build_info"]

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
"""Distributions of which one is installed."""


class LimitsCollector(Collector):
    """The limit of memory, and what the limit of CPU time has cost. No limit of memory: no such series."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._memory_limit_bytes = memory_limit_bytes()
        self._throttling_files = throttling_files()

    def collect(self) -> Iterator[Metric]:
        """A gauge and a counter, without labels."""
        limit = GaugeMetricFamily(
            f"{self._namespace}_memory_limit_bytes",
            "Memory that all processes of the server may take together: the cgroup's limit, or the machine's memory.",
        )
        if self._memory_limit_bytes is not None:
            limit.add_metric([], self._memory_limit_bytes)
        yield limit
        yield CounterMetricFamily(
            f"{self._namespace}_cpu_throttled_seconds",
            "Time for which threads of the cgroup had no core, because its CPU limit was used up.",
            throttled_seconds(self._throttling_files),
        )


def build_info() -> dict[str, str]:
    """Versions of the server and of what computes for it; "unknown" where it runs without being installed."""
    return {"version": _version("dragoman"), "onnxruntime": _version(*_RUNTIMES)}


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
