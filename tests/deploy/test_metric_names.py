"""Every metric and label value that rules, dashboard and autoscaler name is one the program exposes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest
import yaml

from dragoman.inference import grpc_service_pb2
from dragoman.server.bundle.graph_names import MEASURED_GRAPHS
from dragoman.server.errors import NOT_LOADED_REASONS
from dragoman.server.operations.collectors import PROMPT_SOURCES
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
RULES = Path("prometheus/rules/dragoman.yaml")
DASHBOARD = Path("grafana/dragoman.json")
# Prometheus itself makes this one for every target.
OF_PROMETHEUS = {"up"}

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
    "graph": {graph for graphs in MEASURED_GRAPHS.values() for graph in graphs},
}


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    families = Metrics(cpu_limit_cores=1).registry.collect()
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


@pytest.fixture(scope="module")
def rules(deploy: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((deploy / RULES).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def expressions(deploy: Path, rules: list[dict[str, Any]]) -> list[str]:
    dashboard = json.loads((deploy / DASHBOARD).read_text())
    variables = [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    targets = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    return [*(rule["expr"] for rule in rules), *targets, *variables]


def names_in(expression: str) -> Iterator[str]:
    """Identifiers outside of strings that look like a metric's name."""
    for name in re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.sub(r'"[^"]*"', "", expression)):
        if ":" in name or name == "up" or name.startswith((f"{METRIC_PREFIX}_", "process_", "python_")):
            yield name


def test_every_name_is_exposed_recorded_or_prometheus_own(
    expressions: list[str], rules: list[dict[str, Any]], exposed: set[str]
) -> None:
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {name for expression in expressions for name in names_in(expression)}
    assert used - exposed - recorded == OF_PROMETHEUS & used


def test_the_dashboard_shows_every_metric_of_the_server(deploy: Path, exposed: set[str]) -> None:
    dashboard = (deploy / DASHBOARD).read_text()
    families = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed if name.startswith(METRIC_PREFIX)
    }
    assert not {family for family in families if family not in dashboard}


def test_autoscalers_scale_by_metrics_that_exist(
    deploy: Path, rules: list[dict[str, Any]], exposed: set[str]
) -> None:
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
    scaler = yaml.safe_load((adapter / "autoscaler.yaml").read_text())
    assert {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]} == served.keys()
    named = {name for query in queries for name in names_in(query)}
    assert named
    assert named <= exposed | {rule["record"] for rule in rules if "record" in rule}


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
def test_label_values_are_of_the_closed_sets(expressions: list[str], label: str) -> None:
    matchers = [
        value
        for expression in expressions
        for value in re.findall(rf'\b{label}\s*(?:=~|!~|!=|=)\s*"([^"$]*)"', expression)
    ]
    named = {value for matcher in matchers for value in matcher.split("|")}
    assert named <= CLOSED_SETS[label]
