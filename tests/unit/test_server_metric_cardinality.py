"""How many series a server can have: so many for each model, version and process, however long it runs."""

import os
from typing import Literal, get_args

import grpc
from prometheus_client import generate_latest

from dragoman.server.bundle.graph_names import MEASURED_GRAPHS
from dragoman.server.fronts.grpc.dragoman_v1.protocol import DECODING_METHODS
from dragoman.server.fronts.grpc.open_inference import protocol as open_inference
from dragoman.server.models.catalog import VersionState
from dragoman.server.operations.metrics import (
    ADMISSION_REASONS,
    ARRIVAL_REASONS,
    UNKNOWN_MODEL,
    Metrics,
    RejectionReason,
)

OF_SERVER = 250
OF_A_MODEL = 700
OF_A_VERSION = 25
OF_A_PROCESS = 4
CODES = [code.name for code in grpc.StatusCode]


def num_series(metrics: Metrics) -> int:
    lines = generate_latest(metrics.page).decode().splitlines()
    return sum(not line.startswith("#") for line in lines if "_created" not in line)


def use(
    metrics: Metrics, model: str, task: Literal["translation", "generation"], versions: list[str]
) -> None:
    """Make every series that calls for a model can make."""
    observer = metrics.for_model(model, task)
    methods = [*DECODING_METHODS[task], *open_inference.DECODING_METHODS]
    metrics.expect_calls(model, methods)
    for graph in MEASURED_GRAPHS[task]:
        observer.observe_step(graph, 0.001, 1)
    for method in methods:
        for code in CODES:
            metrics.requests.labels(model, method, code)
            metrics.request_seconds.labels(model, method, code)
    for reason in (*ARRIVAL_REASONS, *ADMISSION_REASONS):
        metrics.count_rejected(model, reason)
    for version in versions:
        metrics.model_info.labels(model, version, task, "fp32", "cpu")
        for code in CODES:
            metrics.version_requests.labels(model, version, code)


def test_the_number_of_series_is_bounded_by_what_is_served() -> None:
    metrics = Metrics(1.0)
    for reason in get_args(RejectionReason):
        metrics.count_rejected(UNKNOWN_MODEL, reason)
    before = num_series(metrics)
    assert before <= OF_SERVER
    use(metrics, "first", "translation", [])
    use(metrics, "second", "generation", [])
    of_models = num_series(metrics) - before
    assert of_models <= 2 * OF_A_MODEL
    use(metrics, "first", "translation", ["1", "2", "3"])
    metrics.show_models([("first", str(number), VersionState.SERVING.value) for number in (1, 2, 3)], [])
    of_versions = num_series(metrics) - before - of_models
    assert of_versions <= 3 * OF_A_VERSION
    metrics.processes.watch(os.getpid(), "lane-0")
    assert num_series(metrics) - before - of_models - of_versions <= OF_A_PROCESS
    use(metrics, "first", "translation", ["1", "2", "3"])
    use(metrics, "second", "generation", [])
    assert num_series(metrics) <= before + of_models + of_versions + OF_A_PROCESS, (
        "used again, it has no more"
    )


def test_what_is_given_up_leaves_no_series_of_its_state() -> None:
    metrics = Metrics(1.0)
    metrics.processes.watch(os.getpid(), "lane-0")
    metrics.show_models([("first", "1", "serving")], [])
    before = num_series(metrics)
    for number in range(2, 50):
        metrics.show_models([("first", str(number), "serving")], [])
        metrics.processes.retire(os.getpid())
        metrics.processes.forget(os.getpid())
        metrics.processes.watch(os.getpid(), "lane-0")
    assert num_series(metrics) == before
