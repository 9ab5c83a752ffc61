"""One page for several processes: what is summed, what is not, and what is left of a process that was killed."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from wsgiref.util import setup_testing_defaults

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.test_server_metrics import LABELS, Occupied, Reused, filled

from dragoman.server.lifecycle import Lifecycle
from dragoman.server.operations.collectors import PROMPT_SOURCES
from dragoman.server.operations.endpoints import operations_app
from dragoman.server.operations.merging import STALE_S, MergedRegistry
from dragoman.server.operations.metrics import Metrics
from dragoman.server.operations.shared_values import ValueMemory, ValueWriter, counting_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several fronts need memfd_create")


@pytest.fixture
def memory() -> Iterator[ValueMemory]:
    memory = ValueMemory("test")
    yield memory
    with contextlib.suppress(OSError):  # the test has retired it
        memory.close()


class Front(Protocol):
    def __call__(self, memory: ValueMemory, *, waiting: int = 5) -> tuple[Metrics, ValueWriter]: ...


@pytest.fixture
def front() -> Iterator[Front]:
    """Makes what a second front process counts in a memory: what `filled` has, and a call that failed."""
    with contextlib.ExitStack() as writers:

        def front(memory: ValueMemory, *, waiting: int = 5) -> tuple[Metrics, ValueWriter]:
            writer = writers.enter_context(contextlib.closing(ValueWriter(memory.fd)))
            with counting_in(writer):
                metrics = filled(num_waiting=waiting)
                metrics.requests.labels("toy", "Translate", "UNAVAILABLE").inc()
            metrics.publish(writer)
            return metrics, writer

        yield front


def page(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples, as Prometheus' own parser reads them."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(metrics.page).decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return page(metrics).get((f"dragoman_{name}", frozenset(labels.items())))


def test_without_other_processes_the_page_is_the_registry() -> None:
    metrics = filled()
    pages = [generate_latest(each).decode().splitlines() for each in (metrics.page, metrics.registry)]
    ours = [[line for line in lines if "dragoman_" in line and "_process_" not in line] for lines in pages]
    assert ours[0] == ours[1]


def test_counters_and_histograms_are_sums_and_gauges_of_the_server_are_not(
    memory: ValueMemory, front: Front
) -> None:
    metrics = filled()
    metrics.page.add(memory)
    before = page(metrics)
    front(memory)
    after = page(metrics)
    of_server = {"slots_total", "model_info", "threads", "cpu_limit_cores", "model_load_duration_seconds"}
    of_server |= {
        "prefix_cache_bytes",
        "models_not_loaded",
        "model_version_state",
        "certificate_expiry_timestamp_seconds",
        "phase",
        "build_info",
        "memory_limit_bytes",
        "cpu_throttled_seconds_total",
    }
    of_server |= {"last_request_timestamp_seconds", "oldest_waiting_seconds"}  # the highest of all processes
    for (name, labels), count in before.items():
        if name.startswith("dragoman_process_"):
            assert (name, labels) in after, "the other process's are not added"
        elif name.startswith("dragoman_") and not name.endswith("_created"):
            factor = 1 if name.removeprefix("dragoman_") in of_server else 2
            assert after[name, labels] == factor * count, (name, labels)
    assert value(metrics, "requests_total", model="toy", method="Translate", code="UNAVAILABLE") == 1


def test_the_merged_page_has_the_promised_names_and_labels(memory: ValueMemory, front: Front) -> None:
    metrics = filled()
    metrics.page.add(memory)
    front(memory)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(metrics.page).decode()):
        if family.name.startswith("dragoman_") and not family.name.endswith("_created"):
            labels = {label for sample in family.samples for label in sample.labels}
            found[family.name] = labels - {"le"}
    assert found == LABELS


def observe(metrics: Metrics, *seconds: float) -> None:
    for second in seconds:
        metrics.request_duration.labels("toy", "Translate").observe(second)
        metrics.step_duration.labels("toy", "decode").add(second)


def test_buckets_add_up_and_stay_in_order(memory: ValueMemory) -> None:
    metrics = Metrics(1.0)
    metrics.page.add(memory)
    observe(metrics, 0.001, 0.2, 99.0)
    with contextlib.closing(ValueWriter(memory.fd)) as writer:
        with counting_in(writer):
            other = Metrics(1.0)
            observe(other, 0.0004, 0.2)
        other.publish(writer)
    for name, labels in (
        ("request_duration_seconds", {"model": "toy", "method": "Translate"}),
        ("step_duration_seconds", {"model": "toy", "graph": "decode"}),
    ):
        buckets = [
            count
            for (sample, these), count in page(metrics).items()
            if sample == f"dragoman_{name}_bucket" and labels.items() <= dict(these).items()
        ]
        assert all(first <= second for first, second in itertools.pairwise(buckets))
        assert buckets[-1] == value(metrics, f"{name}_count", **labels) == 5
        assert value(metrics, f"{name}_sum", **labels) == pytest.approx(99.4014)


def test_a_histogram_that_only_another_process_has_is_whole(memory: ValueMemory, front: Front) -> None:
    metrics = Metrics(1.0)
    metrics.page.add(memory)
    front(memory)
    expected = {
        line
        for line in generate_latest(filled().registry).decode().splitlines()
        if line.startswith("dragoman_queue_duration_seconds_") and "_created" not in line
    }
    assert expected <= set(generate_latest(metrics.page).decode().splitlines())


def test_what_an_ended_process_counted_stays_and_its_gauges_go(memory: ValueMemory, front: Front) -> None:
    metrics = filled()
    metrics.page.add(memory)
    front(memory)
    assert value(metrics, "requests_waiting", model="toy") == 10
    metrics.page.retire(memory)
    assert value(metrics, "requests_waiting", model="toy") == 5
    assert value(metrics, "input_tokens_total", model="toy") == 14
    assert value(metrics, "step_duration_seconds_count", model="toy", graph="encode") == 2
    second = ValueMemory("second")
    metrics.page.add(second)
    assert value(metrics, "input_tokens_total", model="toy") == 14, "before it has counted anything"
    front(second)
    assert value(metrics, "input_tokens_total", model="toy") == 21
    metrics.page.retire(second)
    assert value(metrics, "input_tokens_total", model="toy") == 21
    assert value(metrics, "requests_waiting", model="toy") == 5
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second.fd)


def test_gauges_of_a_process_that_hangs_are_left_out_and_its_counts_stay(
    memory: ValueMemory, front: Front
) -> None:
    metrics, late_s = filled(), 0.0
    merged = MergedRegistry(metrics.registry, clock=lambda: time.monotonic() + late_s)
    merged.add(memory)
    front(memory)
    metrics.page = merged
    assert value(metrics, "requests_waiting", model="toy") == 10
    late_s = STALE_S + 1
    assert value(metrics, "requests_waiting", model="toy") == 5
    assert value(metrics, "input_tokens_total", model="toy") == 14


def test_gauges_follow_and_prompt_tokens_are_counted_together(memory: ValueMemory, front: Front) -> None:
    metrics = filled()
    metrics.page.add(memory)
    other, writer = front(memory, waiting=7)
    assert value(metrics, "requests_waiting", model="toy") == 12
    occupied, cache = other._occupancy._engines["toy"][0], other._prefix_caches._caches["toy"][0]
    assert isinstance(occupied, Occupied)
    assert isinstance(cache, Reused)
    occupied.num_waiting, cache.num_reused_tokens = 0, 100
    other.publish(writer)
    assert value(metrics, "requests_waiting", model="toy") == 5
    computed, reused = (
        value(metrics, "prompt_tokens_total", model="toy", source=source) for source in PROMPT_SOURCES
    )
    assert (computed, reused) == (72, 164)


def test_a_scrape_may_ask_for_some_names(memory: ValueMemory, front: Front) -> None:
    metrics = filled()
    metrics.page.add(memory)
    front(memory)
    environ: dict[str, object] = {
        "PATH_INFO": "/metrics",
        "QUERY_STRING": "name[]=dragoman_input_tokens_total",
    }
    setup_testing_defaults(environ)
    app = operations_app(metrics.page, Lifecycle())
    body = b"".join(app(environ, lambda *_: None)).decode()  # type: ignore[arg-type]
    assert [line for line in body.splitlines() if not line.startswith("#")] == [
        'dragoman_input_tokens_total{model="toy"} 14.0'
    ]


def test_no_count_goes_back_while_processes_come_and_go(front: Front) -> None:
    metrics = Metrics(1.0)
    metrics.for_model("toy", "translation")
    seen: list[float] = []
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.is_set():
            seen.append(value(metrics, "input_tokens_total", model="toy") or 0.0)

    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        for number in range(20):
            memory = ValueMemory(f"front-{number}")
            metrics.page.add(memory)
            front(memory)
            metrics.page.retire(memory)
    finally:
        is_over.set()
        scraping.join()
    assert seen == sorted(seen)
    assert value(metrics, "input_tokens_total", model="toy") == 140


COUNT = """
import sys
from prometheus_client import CollectorRegistry, Counter
from dragoman.server.operations.shared_values import ValueWriter, counting_in
with counting_in(ValueWriter(int(sys.argv[1]))):
    calls = Counter("calls", "Calls.", ["code"], registry=CollectorRegistry())
    while True:
        calls.labels("OK").inc()
        print(int(calls.labels("OK")._value.get()), flush=True)
"""


@pytest.fixture
def own() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("calls", "Calls.", ["code"], registry=registry).labels("OK").inc()
    return registry


def test_a_process_that_is_killed_loses_no_count(memory: ValueMemory, own: CollectorRegistry) -> None:
    merged = MergedRegistry(own)
    merged.add(memory)
    files_before = set(Path("/dev/shm").iterdir())
    counting = subprocess.Popen(
        [sys.executable, "-c", COUNT, str(memory.fd)], pass_fds=[memory.fd], stdout=subprocess.PIPE, text=True
    )
    assert counting.stdout is not None
    for line in counting.stdout:
        if int(line) >= 1000:
            break
    counting.send_signal(signal.SIGKILL)
    num_told = max([1000, *(int(line) for line in counting.stdout if line.endswith("\n"))])
    counting.wait()
    counting.stdout.close()
    merged.retire(memory)
    (count,) = [
        sample.value for family in merged.collect() for sample in family.samples if "total" in sample.name
    ]
    assert count - 1 in {num_told, num_told + 1}, "counted, and killed before or after it said so"
    assert set(Path("/dev/shm").iterdir()) == files_before


def test_exemplars_of_the_process_that_is_asked_stay_with_the_sums(memory: ValueMemory) -> None:
    metrics = Metrics(1.0)
    metrics.page.add(memory)
    with contextlib.closing(ValueWriter(memory.fd)) as writer, counting_in(writer):
        other = Metrics(1.0)
        for seconds in (0.0007, 0.3):
            other.request_duration.labels("toy", "Translate").observe(seconds, {"trace_id": "b" * 32})
    metrics.request_duration.labels("toy", "Translate").observe(0.0007, {"trace_id": "a" * 32})
    text = openmetrics.generate_latest(metrics.page).decode()  # type: ignore[no-untyped-call]
    buckets = [
        sample
        for family in openmetrics_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.name == "dragoman_request_duration_seconds_bucket"
    ]
    exemplars = {sample.labels["le"]: sample.exemplar for sample in buckets if sample.exemplar is not None}
    assert list(exemplars) == ["0.001"]
    assert (exemplars["0.001"].labels, exemplars["0.001"].value) == ({"trace_id": "a" * 32}, 0.0007)
    assert [sample.value for sample in buckets if sample.labels["le"] in {"0.001", "+Inf"}] == [2, 3]
