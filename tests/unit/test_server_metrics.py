"""Names, labels and values of the series."""

import math
import os
import re
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dragoman.server.operations.collectors import StepCollector
from dragoman.server.operations.metrics import Metrics

LABELS = {
    "dragoman_requests": {"model", "method", "code"},
    "dragoman_request_duration_seconds": {"model", "method"},
    "dragoman_request_seconds": {"model", "method", "code"},
    "dragoman_last_request_timestamp_seconds": {"model"},
    "dragoman_inference_duration_seconds": {"model"},
    "dragoman_preparation_seconds": {"model"},
    "dragoman_answer_seconds": {"model"},
    "dragoman_queue_duration_seconds": {"model"},
    "dragoman_time_to_first_token_seconds": {"model"},
    "dragoman_time_per_output_token_seconds": {"model"},
    "dragoman_step_duration_seconds": {"model", "graph"},
    "dragoman_batch_rows": {"model"},
    "dragoman_slots_used": {"model"},
    "dragoman_slots_total": {"model"},
    "dragoman_requests_running": {"model"},
    "dragoman_requests_waiting": {"model"},
    "dragoman_oldest_waiting_seconds": {"model"},
    "dragoman_phase": {"phase"},
    "dragoman_build_info": {"version", "onnxruntime"},
    "dragoman_memory_limit_bytes": set(),
    "dragoman_cpu_throttled_seconds": set(),
    "dragoman_drain_cancelled_calls": set(),
    "dragoman_drain_deadline_timestamp_seconds": set(),
    "dragoman_input_tokens": {"model"},
    "dragoman_unknown_input_tokens": {"model"},
    "dragoman_output_tokens": {"model"},
    "dragoman_rejected_requests": {"model", "stage", "reason"},
    "dragoman_model_info": {"model", "version", "task", "precision", "provider"},
    "dragoman_threads": set(),
    "dragoman_cpu_limit_cores": set(),
    "dragoman_model_load_duration_seconds": {"model"},
    "dragoman_prompt_tokens": {"model", "source"},
    "dragoman_prefix_cache_bytes": {"model"},
    "dragoman_calls_started": set(),
    "dragoman_calls_taken_up": set(),
    "dragoman_models_not_loaded": {"reason"},
    "dragoman_model_version_state": {"model", "version", "state"},
    "dragoman_version_requests": {"model", "version", "code"},
    "dragoman_process_cpu_seconds": {"process"},
    "dragoman_process_pss_bytes": {"process"},
    "dragoman_process_open_fds": {"process"},
    "dragoman_process_start_time_seconds": {"process"},
    "dragoman_failed_steps": {"model"},
    "dragoman_trace_spans": {"result"},
    "dragoman_credential_reloads": {"kind", "result"},
    "dragoman_certificate_expiry_timestamp_seconds": {"certificate"},
}


@dataclass
class Occupied:
    slots_used: int = 3
    slots_total: int = 8
    num_running: int = 3
    num_waiting: int = 5

    oldest_s: float = 1.5

    def occupancy(self) -> "Occupied":
        return self

    def oldest_waiting_s(self) -> float:
        return self.oldest_s


@dataclass
class Reused:
    num_reused_tokens: int = 64
    num_computed_tokens: int = 36
    num_bytes: int = 4096


def filled(*, num_waiting: int = 5) -> Metrics:
    metrics = Metrics(cpu_limit_cores=1.5)
    model = metrics.for_model("toy", "translation")
    metrics.processes.watch(os.getpid(), "front-0")
    metrics.watch("toy", Occupied(num_waiting=num_waiting))
    metrics.watch_prefix_cache("toy", Reused())
    metrics.certificate_expiry.labels("server").set(1.8e9)
    metrics.requests.labels("toy", "Translate", "OK").inc()
    metrics.request_seconds.labels("toy", "Translate", "OK").inc(0.1)
    metrics.request_duration.labels("toy", "Translate").observe(0.1)
    metrics.last_requests.times_s["toy"] = 1.7e9
    metrics.version_requests.labels("toy", "1", "OK").inc()
    metrics.show_models([("toy", "1", "serving"), ("toy", "2", "failed")], ["broken"])
    metrics.model_info.labels("toy", "1", "translation", "fp32", "cpu").set(1)
    metrics.model_load_duration.labels("toy").set(0.2)
    model.observe_accepted(7, num_unknown=2)
    model.observe_step("encode", 0.001, 4)
    model.observe_step("decode", 0.001, 4)
    model.observe_step("decode", 0.001, 2)
    model.observe_step("decode_steps", 0.004, 3)
    model.observe_preparation(0.5)
    model.observe_times(10.0, 10.25, 10.5)
    model.observe_answer(5, 1, decoding_s=1.0, inference_s=1.5, making_s=0.25)
    metrics.count_rejected("toy", "queue_full")
    model.observe_late("running")
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"dragoman_{name}", labels)


def test_names_and_labels_are_the_promised_ones() -> None:
    text = generate_latest(filled().registry).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("dragoman_") and not family.name.endswith("_created"):
            labels = found.setdefault(family.name, set())
            for sample in family.samples:
                labels |= set(sample.labels) - {"le"}
    assert found == LABELS


def test_values() -> None:
    metrics = filled()
    assert value(metrics, "input_tokens_total", model="toy") == 7
    assert value(metrics, "unknown_input_tokens_total", model="toy") == 2
    assert value(metrics, "output_tokens_total", model="toy") == 5
    assert value(metrics, "queue_duration_seconds_sum", model="toy") == 0.25
    assert value(metrics, "inference_duration_seconds_sum", model="toy") == 1.5
    assert value(metrics, "preparation_seconds_total", model="toy") == 0.5
    assert value(metrics, "answer_seconds_total", model="toy") == 0.25
    assert value(metrics, "time_to_first_token_seconds_sum", model="toy") == 0.5
    assert value(metrics, "time_per_output_token_seconds_sum", model="toy") == 0.25
    assert value(metrics, "step_duration_seconds_count", model="toy", graph="encode") == 1
    assert value(metrics, "step_duration_seconds_count", model="toy", graph="decode") == 2
    assert value(metrics, "step_duration_seconds_count", model="toy", graph="decode_steps") == 1
    assert value(metrics, "batch_rows_count", model="toy") == 3
    assert value(metrics, "batch_rows_sum", model="toy") == 9
    assert value(metrics, "rejected_requests_total", model="toy", stage="admission", reason="queue_full") == 1
    assert value(metrics, "rejected_requests_total", model="toy", stage="admission", reason="draining") == 0
    assert value(metrics, "cpu_limit_cores") == 1.5


@given(st.lists(st.floats(0.0, 3.0) | st.sampled_from([0.5, 1.0, 2.0])))
def test_a_tally_counts_as_prometheus_own_histogram_does(values: list[float]) -> None:
    bounds = (0.5, 1.0, 2.0)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    collector = StepCollector("steps", "Steps.", ["model"], bounds)
    ours.register(collector)
    histogram = Histogram("dragoman_steps", "Steps.", ["model"], registry=theirs, buckets=bounds)
    for observe in (collector.labels("toy").add, histogram.labels("toy").observe):
        for value in values:
            observe(value)
    lines = [
        [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
        for registry in (ours, theirs)
    ]
    assert lines[0] == lines[1]


def test_occupancy_is_read_at_the_scrape() -> None:
    metrics, engine = Metrics(1.0), Occupied()
    metrics.watch("toy", engine)
    engine.num_waiting = 9
    assert value(metrics, "requests_waiting", model="toy") == 9
    engine.slots_used = 1
    assert value(metrics, "slots_used", model="toy") == 1


def test_the_prefix_cache_is_read_at_the_scrape() -> None:
    metrics, cache = Metrics(1.0), Reused()
    metrics.watch_prefix_cache("toy", cache)
    cache.num_reused_tokens = 96
    assert value(metrics, "prompt_tokens_total", model="toy", source="reused") == 96
    assert value(metrics, "prompt_tokens_total", model="toy", source="computed") == 36
    assert value(metrics, "prefix_cache_bytes", model="toy") == 4096


def test_versions_of_a_model_are_added_up_and_what_one_has_counted_stays() -> None:
    metrics, first, second = Metrics(1.0), Occupied(), Occupied(num_waiting=2)
    caches = Reused(), Reused(num_reused_tokens=100)
    for engine, cache in zip((first, second), caches, strict=True):
        metrics.watch("toy", engine)
        metrics.watch_prefix_cache("toy", cache)
    assert value(metrics, "requests_waiting", model="toy") == 7
    assert value(metrics, "prompt_tokens_total", model="toy", source="reused") == 164
    metrics.unwatch("toy", first)
    metrics.unwatch_prefix_cache("toy", caches[0])
    assert value(metrics, "requests_waiting", model="toy") == 2
    assert value(metrics, "slots_total", model="toy") == 8
    assert value(metrics, "prompt_tokens_total", model="toy", source="reused") == 164
    assert value(metrics, "prefix_cache_bytes", model="toy") == 4096
    metrics.unwatch("toy", second)
    assert value(metrics, "slots_total", model="toy") == 0


def test_calls_in_grpc_are_read_at_the_scrape_and_kept_when_the_server_has_gone() -> None:
    metrics, started = Metrics(1.0), [7]
    metrics.watch_arrivals(lambda: started[0] if started else None, lambda: 6)
    assert value(metrics, "calls_started_total") == 7
    started.clear()
    assert value(metrics, "calls_started_total") == 7
    assert value(metrics, "calls_taken_up_total") == 6


def test_tokens_that_came_together_first_have_no_time_between_them() -> None:
    metrics = Metrics(1.0)
    model = metrics.for_model("toy", "generation")
    model.observe_answer(1, 1, decoding_s=0.001, inference_s=0.002, making_s=0.0)
    model.observe_answer(4, 4, decoding_s=0.001, inference_s=0.002, making_s=0.0)
    assert value(metrics, "time_per_output_token_seconds_count", model="toy") == 0
    model.observe_answer(6, 4, decoding_s=1.0, inference_s=1.5, making_s=0.25)
    assert value(metrics, "time_per_output_token_seconds_sum", model="toy") == 0.5


def test_series_exist_before_the_first_call() -> None:
    metrics = Metrics(1.0)
    metrics.for_model("toy", "generation")
    metrics.expect_calls("toy", ["Generate"])
    assert value(metrics, "requests_total", model="toy", method="Generate", code="OK") == 0
    assert value(metrics, "requests_total", model="toy", method="Translate", code="OK") is None


def test_two_servers_in_one_process_share_nothing() -> None:
    first, second = filled(), Metrics(1.0)
    assert value(first, "requests_total", model="toy", method="Translate", code="OK") == 1
    assert value(second, "requests_total", model="toy", method="Translate", code="OK") is None


def test_the_process_describes_itself() -> None:
    assert b"process_resident_memory_bytes" in generate_latest(Metrics(1.0).registry)


def test_each_family_is_explained() -> None:
    families = [each for each in Metrics(1.0).registry.collect() if each.name.startswith("dragoman_")]
    assert len(families) > 30
    unexplained = [
        each.name for each in families if not re.fullmatch(r"[A-Z][^\n]{10,}[.1]", each.documentation)
    ]
    assert not unexplained


def test_buckets_of_calls_reach_from_half_a_millisecond_to_a_minute() -> None:
    bounds = {
        family.name: [
            float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")
        ]
        for family in filled().registry.collect()
        if family.type == "histogram" and family.name.endswith("_seconds")
    }
    of_steps = {"dragoman_step_duration_seconds", "dragoman_time_per_output_token_seconds"}
    assert of_steps < set(bounds)
    for name, each in bounds.items():
        finite = [bound for bound in each if bound < math.inf]
        assert finite, name
        if name not in of_steps:
            assert (min(finite), max(finite)) == (0.0005, 60.0), name
