"""One page of metrics for several processes that serve as one.

The process that is asked has its own series. Of the others it reads the memory (`shared_values`):

    counters, histograms    the sums over all processes, those that have ended included: no count goes back
    gauges of `SUMMED`      the sums over the processes that live and have lately written
    gauges of `HIGHEST`     the highest of them
    other gauges            this process's own: they are of the server as a whole (what is loaded, what there is)
    exemplars               this process's own: an example of each bucket is enough, and any front's calls are alike
"""

import functools
import json
import operator
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from dragoman.server.operations.collectors import LAST_REQUEST, OLDEST_WAITING
from dragoman.server.operations.shared_values import HEARTBEAT, ValueMemory, own_counts

__all__ = ["STALE_S", "SUMMED", "MergedRegistry"]

SUMMED = frozenset({"dragoman_requests_running", "dragoman_requests_waiting", "dragoman_slots_used"})
"""Gauges of what a process holds itself."""
HIGHEST = frozenset({LAST_REQUEST, OLDEST_WAITING})
"""Gauges that are of the call that came last, or of the one that waits longest."""
COUNTED = frozenset({"counter", "histogram"})
STALE_S = 5.0
"""A process that has written nothing for this long hangs: its gauges say nothing of now."""


class _Key(NamedTuple):
    family: str
    sample: str
    labels: tuple[tuple[str, str], ...]


Values = Mapping[_Key, float]
_Families: TypeAlias = "dict[str, dict[_Key, float]]"
_Combine: TypeAlias = Callable[[float, float], float]


class MergedRegistry(Collector):
    """The registry that a scrape reads: the series of `own` and those of the server's other processes. Thread-safe."""

    def __init__(self, own: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._own = own
        self._clock = clock
        self._memories: dict[ValueMemory, None] = {}
        self._ended: dict[_Key, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, memory: ValueMemory) -> None:
        """Read a process's values at every scrape from now on."""
        with self._lock:
            self._memories[memory] = None

    def retire(self, memory: ValueMemory) -> None:
        """The process has ended: keep what it has counted, and close its memory."""
        with self._lock:
            del self._memories[memory]
            for key, value in _parsed(memory.read()).items():
                self._ended[key] += value
            memory.close()

    def collect(self) -> Iterator[Metric]:
        """All families, in the order of this process."""
        return self.merged(list(self._own.collect()))

    def merged(self, own: Iterable[Metric]) -> Iterator[Metric]:
        """Families of this process, with what other processes have of them."""
        gauges, highest, counts = self._others()
        for family in own:
            if family.name in HIGHEST:
                yield _merged(family, highest.get(family.name, {}), max)
                continue
            others = counts if family.type in COUNTED else gauges if family.name in SUMMED else {}
            values = others.get(family.name)
            yield _merged(family, values) if values else family

    def restricted_registry(self, names: Collection[str]) -> "_Restricted":
        """Returns a registry of those samples only that have one of `names`, as a scrape with `name[]=` wants it."""
        return _Restricted(self, frozenset(names))

    def _others(self) -> tuple[_Families, _Families, _Families]:
        """Returns the other processes' values by family: sums over the living, their highest, and sums over all."""
        with self._lock:
            values = [memory.read() for memory in self._memories]
            counts = [dict(self._ended)] if self._ended else []
        begin_s = self._clock() - STALE_S
        alive = [_parsed(each) for each in values if each.get(HEARTBEAT, 0.0) >= begin_s]
        return _sums(alive), _sums(alive, max), _sums(counts + [_parsed(each) for each in values])


class _Restricted:
    def __init__(self, registry: MergedRegistry, names: frozenset[str]) -> None:
        self._registry, self._names = registry, names

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            samples = [sample for sample in family.samples if sample.name in self._names]
            if samples:
                yield _family(family, samples)


def _sums(processes: Iterable[Values], add: _Combine = operator.add) -> _Families:
    sums: _Families = defaultdict(lambda: defaultdict(float))
    for values in processes:
        for key, value in values.items():
            of_family = sums[key.family]
            of_family[key] = add(of_family[key], value)
    return sums


def _merged(family: Metric, others: Values, add: _Combine = operator.add) -> Metric:
    values: dict[_Key, float] = defaultdict(float)
    exemplars: dict[_Key, Exemplar] = {}
    for sample in own_counts(family):
        key = _Key(family.name, sample.name, _sorted(sample.labels))
        values[key] += sample.value
        if sample.exemplar is not None:
            exemplars[key] = sample.exemplar
    for key, value in others.items():
        values[key] = add(values[key], value)
    if family.type == "histogram":
        return _family(family, _histogram_samples(family.name, values, exemplars))
    return _family(family, _samples(values))


def _samples(values: Values) -> Iterator[Sample]:
    for key, value in values.items():
        yield Sample(key.sample, dict(key.labels), value)


def _histogram_samples(name: str, values: Values, exemplars: Mapping[_Key, Exemplar]) -> Iterator[Sample]:
    """Buckets in their order, each with those below it; then count and sum, for each set of labels."""
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    buckets: dict[tuple[tuple[str, str], ...], dict[float, _Key]] = defaultdict(dict)
    for key, value in values.items():
        if key.sample.endswith("_bucket"):
            labels = tuple(label for label in key.labels if label[0] != "le")
            buckets[labels][float(dict(key.labels)["le"])] = key
        else:
            sums[key.labels] = value
    for labels, bounds in buckets.items():
        total = 0.0
        for bound, key in sorted(bounds.items()):
            total += values[key]
            le: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
            exemplar = exemplars.get(key)
            yield Sample(f"{name}_bucket", {**dict(labels), "le": le}, total, exemplar=exemplar)
        yield Sample(f"{name}_count", dict(labels), total)
        yield Sample(f"{name}_sum", dict(labels), sums.get(labels, 0.0))


def _family(family: Metric, samples: Iterable[Sample]) -> Metric:
    copy = Metric(family.name, family.documentation, family.type, family.unit)
    copy.samples = list(samples)
    return copy


def _parsed(values: Mapping[str, float]) -> dict[_Key, float]:
    return {_key(key): value for key, value in values.items() if key != HEARTBEAT}


@functools.lru_cache(maxsize=65_536)  # label sets are closed, and the keys of all processes are the same
def _key(key: str) -> _Key:
    family, sample, labels, _ = json.loads(key)
    return _Key(family, sample, _sorted(labels))


def _sorted(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
