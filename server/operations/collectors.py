"""Series that are read when they are asked for, so that nothing is paid between scrapes."""

import itertools
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from dragoman.server.lifecycle import CONDITIONS, Phase

__all__ = [
    "LAST_REQUEST",
    "METRIC_PREFIX",
    "OLDEST_WAITING",
    "PROMPT_SOURCES",
    "ArrivalCollector",
    "CountingPrefixCache",
    "LastRequestCollector",
    "OccupancyCollector",
    "OccupiedEngine",
    "PhaseCollector",
    "PrefixCacheCollector",
    "StepCollector",
    "Tally",
    "VersionStateCollector",
]

METRIC_PREFIX = "dragoman"
OLDEST_WAITING = f"{METRIC_PREFIX}_oldest_waiting_seconds"
LAST_REQUEST = f"{METRIC_PREFIX}_last_request_timestamp_seconds"

PROMPT_SOURCES: tuple[Literal["computed", "reused"], ...] = ("computed", "reused")


class _Occupancy(Protocol):
    @property
    def slots_used(self) -> int: ...
    @property
    def slots_total(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...


class OccupiedEngine(Protocol):
    """An engine, as far as metrics know it."""

    def occupancy(self) -> _Occupancy:
        """How full it is at this moment."""

    def oldest_waiting_s(self) -> float:
        """How long the input has waited for a slot that waits longest; 0: none waits."""


class CountingPrefixCache(Protocol):
    """A prefix cache, as far as metrics know it."""

    @property
    def num_reused_tokens(self) -> int:
        """Prompt tokens taken from it so far."""

    @property
    def num_computed_tokens(self) -> int:
        """Prompt tokens that had to be run so far."""

    @property
    def num_bytes(self) -> int:
        """Bytes held at this moment."""


class OccupancyCollector(Collector):
    """Slots and queues of engines by model name."""

    def __init__(self) -> None:
        self._engines: dict[str, tuple[OccupiedEngine, ...]] = {}

    def watch(self, name: str, engine: OccupiedEngine) -> None:
        """Add a version's engine to those of a model."""
        self._engines[name] = (*self._engines.get(name, ()), engine)

    def unwatch(self, name: str, engine: OccupiedEngine) -> None:
        """A version's engine has gone; its model stays."""
        self._engines[name] = tuple(each for each in self._engines[name] if each is not engine)

    def collect(self) -> Iterator[Metric]:
        """One gauge a figure, one sample a model."""
        families = {
            "slots_used": "Slots that hold a sequence.",
            "slots_total": "Slots there are.",
            "requests_running": "Inputs being decoded.",
            "requests_waiting": "Inputs waiting for a slot.",
        }
        gauges = [
            GaugeMetricFamily(f"{METRIC_PREFIX}_{name}", help_text, labels=["model"])
            for name, help_text in families.items()
        ]
        oldest = GaugeMetricFamily(
            OLDEST_WAITING,
            "How long the input has waited for a slot that waits longest; 0 where none waits.",
            labels=["model"],
        )
        for model, engines in list(self._engines.items()):
            now = [engine.occupancy() for engine in engines]
            values = (
                sum(each.slots_used for each in now),
                sum(each.slots_total for each in now),
                sum(each.num_running for each in now),
                sum(each.num_waiting for each in now),
            )
            for gauge, value in zip(gauges, values, strict=True):
                gauge.add_metric([model], value)
            oldest.add_metric([model], max((engine.oldest_waiting_s() for engine in engines), default=0.0))
        yield from (*gauges, oldest)


class PrefixCacheCollector(Collector):
    """What generation models reuse of prompts, by model name."""

    def __init__(self) -> None:
        self._caches: dict[str, tuple[CountingPrefixCache, ...]] = {}
        self._gone: dict[str, tuple[int, int]] = {}  # tokens computed and reused by versions that have gone

    def watch(self, name: str, cache: CountingPrefixCache) -> None:
        """Add a version's cache to those of a model."""
        self._caches[name] = (*self._caches.get(name, ()), cache)

    def unwatch(self, name: str, cache: CountingPrefixCache) -> None:
        """A version's cache has gone; what it has counted stays."""
        computed, reused = self._gone.get(name, (0, 0))
        self._gone[name] = (computed + cache.num_computed_tokens, reused + cache.num_reused_tokens)
        self._caches[name] = tuple(each for each in self._caches[name] if each is not cache)

    def collect(self) -> Iterator[Metric]:
        """Tokens by where their keys and values came from, and the bytes held."""
        tokens = CounterMetricFamily(
            f"{METRIC_PREFIX}_prompt_tokens",
            "Tokens of started prompts, by whether their keys and values were computed or reused.",
            labels=["model", "source"],
        )
        held = GaugeMetricFamily(
            f"{METRIC_PREFIX}_prefix_cache_bytes",
            "Keys and values kept for prompts that begin the same.",
            labels=["model"],
        )
        for model, caches in list(self._caches.items()):
            computed, reused = self._gone.get(model, (0, 0))
            computed += sum(cache.num_computed_tokens for cache in caches)
            reused += sum(cache.num_reused_tokens for cache in caches)
            for source, count in zip(PROMPT_SOURCES, (computed, reused), strict=True):
                tokens.add_metric([model, source], count)
            held.add_metric([model], sum(cache.num_bytes for cache in caches))
        yield tokens
        yield held


class VersionStateCollector(Collector):
    """What the server does with each version of each model, as it was said last.

    Attributes:
        states: model, version and state of each. A version has one series, in the state that it is in.
    """

    def __init__(self) -> None:
        self.states: tuple[tuple[str, str, str], ...] = ()

    def collect(self) -> Iterator[Metric]:
        """One gauge, one sample a version."""
        gauge = GaugeMetricFamily(
            f"{METRIC_PREFIX}_model_version_state",
            "What the server does with a version of a model; always 1.",
            labels=["model", "version", "state"],
        )
        for values in self.states:
            gauge.add_metric(values, 1)
        yield gauge


class PhaseCollector(Collector):
    """What the server does with calls, in the words of `/readyz`.

    Attributes:
        read: returns the one of `CONDITIONS` that is true now.
    """

    def __init__(self) -> None:
        self.read: Callable[[], str] = lambda: Phase.LOADING.value

    def collect(self) -> Iterator[Metric]:
        """One gauge, one sample a phase: 1 for the present one, 0 for the others."""
        gauge = GaugeMetricFamily(
            f"{METRIC_PREFIX}_phase", "Whether the server is in this phase: 0 or 1.", labels=["phase"]
        )
        now = self.read()
        for phase in CONDITIONS:
            gauge.add_metric([phase], float(phase == now))
        yield gauge


class ArrivalCollector(Collector):
    """Calls as gRPC's core counts them beside those that reached the server's own code.

    The difference waits in gRPC's core, or was dropped there without a status of ours.
    """

    def __init__(self) -> None:
        self.count_started: Callable[[], int | None] = lambda: 0
        self.count_taken_up: Callable[[], int] = lambda: 0
        self._last = 0

    def collect(self) -> Iterator[Metric]:
        """Two counters of all calls, those of the health and reflection services and of unknown methods included."""
        # Taken up is read first: a call that comes meanwhile may not make it the larger of the two.
        taken_up, started = self.count_taken_up(), self.count_started()
        self._last = self._last if started is None else started
        yield CounterMetricFamily(
            f"{METRIC_PREFIX}_calls_started", "Calls whose headers gRPC has received.", self._last
        )
        yield CounterMetricFamily(
            f"{METRIC_PREFIX}_calls_taken_up",
            "Calls that gRPC handed to the server, to be answered or refused.",
            taken_up,
        )


class LastRequestCollector(Collector):
    """When the last call for an answer of each model came.

    Attributes:
        times_s: since 1970, by the model's name.
    """

    def __init__(self) -> None:
        self.times_s: dict[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        """One sample a model."""
        gauge = GaugeMetricFamily(
            LAST_REQUEST, "When the last call for an answer of a model came.", labels=["model"]
        )
        for model, time_s in list(self.times_s.items()):
            gauge.add_metric([model], time_s)
        yield gauge


class Tally:
    """Counts by bucket, for what happens at every step: less than half the time that `Histogram.observe` takes."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Count a value in the first bucket that takes it."""
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[bucket] += 1
            self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Upper bounds with what was counted up to each, as Prometheus wants them, and the sum of all values."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(names, itertools.accumulate(map(float, counts)), strict=True)), total


class StepCollector(Collector):
    """A histogram whose tallies are read when it is asked for."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._help, self._labels, self._bounds = name, help_text, labels, bounds
        self._tallies: dict[tuple[str, ...], Tally] = {}

    def labels(self, *values: str) -> Tally:
        """The tally of these label values, which exists from now on."""
        return self._tallies.setdefault(values, Tally(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """One sample of each bucket for each set of labels."""
        family = HistogramMetricFamily(f"{METRIC_PREFIX}_{self._name}", self._help, labels=self._labels)
        for values, tally in list(self._tallies.items()):
            buckets, total = tally.buckets()
            family.add_metric(values, buckets, total)
        yield family
