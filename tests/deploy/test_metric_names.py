"""Every metric and label value that rules, dashboards and autoscalers name is one that the program exposes; none of
its metrics is unused or undocumented."""

import re
from pathlib import Path
from typing import get_args

import grpc
import pytest
import yaml
from tests.deploy.queries import all_queries, rules_of, selectors

from dragoman.inference import grpc_service_pb2
from dragoman.server.bundle.graph_names import MEASURED_GRAPHS
from dragoman.server.errors import NOT_LOADED_REASONS
from dragoman.server.lifecycle import CONDITIONS
from dragoman.server.models.catalog import VersionState
from dragoman.server.operations.collectors import PROMPT_SOURCES
from dragoman.server.operations.log_writer import DroppedLinesCollector, LogWriter
from dragoman.server.operations.metrics import (
    ADMISSION_REASONS,
    ARRIVAL_REASONS,
    METRIC_PREFIX,
    Metrics,
    Stage,
)
from dragoman.v1 import generation_pb2, model_pb2, translation_pb2

SUFFIXES = {
    "counter": ["_total"],
    "gauge": [""],
    "info": ["_info"],
    "histogram": ["_bucket", "_sum", "_count"],
}
# Prometheus itself makes these.
OF_PROMETHEUS = {"up", "ALERTS"}
# https://github.com/kubernetes/kube-state-metrics/tree/main/docs/metrics
OF_KUBE_STATE_METRICS = {
    "kube_deployment_spec_replicas",
    "kube_deployment_status_replicas_available",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kube_horizontalpodautoscaler_status_condition",
    "kube_horizontalpodautoscaler_status_current_replicas",
    "kube_pod_container_status_last_terminated_reason",
    "kube_pod_container_status_restarts_total",
    "kube_pod_deletion_timestamp",
}

METHODS = {
    method.name
    for file in (translation_pb2, generation_pb2, model_pb2, grpc_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
CLOSED_SETS: dict[str, set[str]] = {
    "code": {code.name for code in grpc.StatusCode},
    "reason": {*ADMISSION_REASONS, *ARRIVAL_REASONS, *NOT_LOADED_REASONS},
    "stage": set(get_args(Stage)),
    "method": METHODS,
    "source": set(PROMPT_SOURCES),
    "phase": set(CONDITIONS),
    "state": {state.value for state in VersionState},
    "graph": {graph for graphs in MEASURED_GRAPHS.values() for graph in graphs},
}


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    registry = Metrics(cpu_limit_cores=1).registry
    registry.register(DroppedLinesCollector(LogWriter(lambda _: None)))
    families = registry.collect()
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


@pytest.fixture(scope="module")
def used(deploy: Path) -> set[str]:
    """Names of all series that rules, dashboards and autoscalers ask for."""
    return {str(each.name) for query in all_queries(deploy) for each in selectors(query.expression)}


def test_every_name_is_exposed_recorded_or_of_prometheus_or_kubernetes(
    deploy: Path, used: set[str], exposed: set[str]
) -> None:
    recorded = {rule["record"] for rule in rules_of(deploy) if "record" in rule}
    others = used - exposed - recorded - OF_PROMETHEUS
    assert others == OF_KUBE_STATE_METRICS


def families(exposed: set[str]) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed if name.startswith(METRIC_PREFIX)}


def test_every_metric_of_the_server_is_shown_or_watched(used: set[str], exposed: set[str]) -> None:
    asked_for = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert not families(exposed) - asked_for


def test_every_metric_of_the_server_is_documented(deploy: Path, exposed: set[str]) -> None:
    page = (deploy.parent / "docs" / "operations.md").read_text()
    listed = set(re.findall(r"`(?:dragoman_)?([a-z_]+)`", page))
    assert not {name.removeprefix("dragoman_") for name in families(exposed)} - listed


def test_every_recorded_series_is_used(deploy: Path, used: set[str]) -> None:
    assert not {rule["record"] for rule in rules_of(deploy) if "record" in rule} - used


def test_autoscalers_scale_by_metrics_that_exist(deploy: Path, exposed: set[str]) -> None:
    recorded = {rule["record"] for rule in rules_of(deploy) if "record" in rule}
    components = deploy / "components"
    scaled = yaml.safe_load((components / "autoscaling-keda" / "scaled_object.yaml").read_text())
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    adapter = components / "autoscaling-adapter"
    served = {}
    for rule in yaml.safe_load((adapter / "adapter-values.yaml").read_text())["rules"]["custom"]:
        series = rule["seriesQuery"].partition("{")[0]
        served[rule.get("name", {}).get("as", series)] = rule["metricsQuery"].replace("<<.Series>>", series)
        queries.append(rule["seriesQuery"])
    queries += [re.sub(r"<<[^>]*>>", "", query) for query in served.values()]
    queries = [re.sub(r"\{[^}]*\}", "", query) for query in queries]  # labels may be called like metrics
    scaler = yaml.safe_load((adapter / "autoscaler.yaml").read_text())
    assert {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]} == served.keys()
    named = {str(each.name) for query in queries for each in selectors(query)}
    assert named
    assert named <= exposed | recorded


def test_both_autoscalers_want_the_same(deploy: Path) -> None:
    components = deploy / "components"
    scaled = yaml.safe_load((components / "autoscaling-keda" / "scaled_object.yaml").read_text())["spec"]
    scaler = yaml.safe_load((components / "autoscaling-adapter" / "autoscaler.yaml").read_text())["spec"]
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == scaler["behavior"]
    assert scaled["minReplicaCount"] == scaler["minReplicas"]
    assert scaled["maxReplicaCount"] == scaler["maxReplicas"]
    thresholds = [float(trigger["metadata"]["threshold"]) for trigger in scaled["triggers"]]
    values = [metric["pods"]["target"]["averageValue"] for metric in scaler["metrics"]]
    assert thresholds == [float(v.removesuffix("m")) / (1000 if v.endswith("m") else 1) for v in values]
    assert 0.7 <= thresholds[0] <= 0.8


@pytest.mark.parametrize("label", CLOSED_SETS)
def test_label_values_are_of_the_closed_sets(deploy: Path, label: str) -> None:
    named = {
        value
        for query in all_queries(deploy)
        for selector in selectors(query.expression)
        if str(selector.name).startswith((METRIC_PREFIX, "namespace_job"))
        for matcher in selector.matchers.matchers
        if matcher.name == label and matcher.value != ".*"
        for value in matcher.value.split("|")
    }
    assert named <= CLOSED_SETS[label]
