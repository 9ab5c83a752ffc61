"""The real Prometheus against a loaded server: every panel has data, every rule evaluates.

Debian's package `prometheus` is what runs; without it these tests skip.
"""

import json
import math
import re
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from tests.deploy.queries import dashboards, filled_in, queries_of, rules_of, selectors, variable_of
from tools.local_prometheus import LocalPrometheus

from dragoman.v1 import decoding_pb2, generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc
from dragoman.v1 import translation_pb2 as translation
from dragoman.v1 import translation_pb2_grpc as translation_grpc

SCRAPE_INTERVAL = "500ms"
PATIENCE_S = 90.0
POLL_S = 0.25
TEXTS = ["5 March 1999", "12.4.2007"]


class Sample(NamedTuple):
    labels: dict[str, str]
    value: float


class Prometheus:
    """A running Prometheus's HTTP API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]

    def query(self, expression: str) -> list[Sample]:
        """The samples at this moment that are numbers: a quantile of nothing is NaN, not data."""
        result = self.get("query", query=expression)["result"]
        samples = [Sample(one["metric"], float(one["value"][1])) for one in result]
        return [sample for sample in samples if math.isfinite(sample.value)]


OVER_TLS = "dragoman_certificate_expiry_timestamp_seconds"
"""A series that a server without a certificate, as this test's is, does not have."""


OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}


class Load:
    """Calls of every kind, good and bad, until it is stopped."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        listed = model_pb2_grpc.ModelServiceStub(self.channel).ListModels(model_pb2.ListModelsRequest())
        self.translators = [m.name for m in listed.models if m.task == model_pb2.TASK_TRANSLATION]
        self.generators = [m.name for m in listed.models if m.task == model_pb2.TASK_GENERATION]
        self.ok = 0
        self.failed: dict[str, int] = {}
        self._stop = threading.Event()

    def calls(self) -> Iterator[Callable[[], Any]]:
        translator = translation_grpc.TranslationServiceStub(self.channel)
        generator = generation_pb2_grpc.GenerationServiceStub(self.channel)

        def translate(model: str, inputs: list[str], *, timeout: float = 30) -> None:
            translator.Translate(translation.TranslateRequest(model=model, inputs=inputs), timeout=timeout)

        def stream(model: str) -> None:
            list(
                translator.StreamTranslate(
                    translation.TranslateRequest(model=model, inputs=TEXTS), timeout=30
                )
            )

        def generate(model: str) -> None:
            options = decoding_pb2.DecodingOptions(max_tokens=8)
            request = generation_pb2.GenerateRequest(model=model, prompt=TEXTS[0], options=options)
            list(generator.Generate(request, timeout=30))

        for model in self.translators:
            yield partial(translate, model, TEXTS)
            yield partial(stream, model)
            yield partial(translate, model, TEXTS * 50, timeout=0.02)
            yield partial(translate, model, [""])
        for model in self.generators:
            yield partial(generate, model)
        yield partial(translate, "nobody", TEXTS)

    def run(self) -> None:
        calls = list(self.calls())
        while not self._stop.is_set():
            for call in calls:
                try:
                    call()
                    self.ok += 1
                except grpc.RpcError as error:
                    name = error.code().name
                    self.failed[name] = self.failed.get(name, 0) + 1

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def run_prometheus(metrics_port: int, folder: Path, *options: str) -> Iterator[Prometheus]:
    """Prometheus with the committed configuration and rules, only quicker and at a test's server."""
    local = LocalPrometheus.start(folder, metrics_port, interval=SCRAPE_INTERVAL, options=options)
    with local.process:
        try:
            yield Prometheus(local.address())
        finally:
            local.process.terminate()


@pytest.fixture(scope="module")
def prometheus(serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian package prometheus): no dashboard query was run")
    with run_prometheus(serving.metrics_port, tmp_path_factory.mktemp("prometheus")) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def load(serving: Any, prometheus: Prometheus) -> Iterator[Load]:
    load = Load(serving.port)
    with load.channel, ThreadPoolExecutor(max_workers=2) as pool:
        runs = [pool.submit(load.run) for _ in range(2)]
        yield load
        load.stop()
        for run in runs:
            run.result()


def wait_for_data(
    prometheus: Prometheus, queries: dict[str, str], enough: Callable[[str, list[Sample]], bool]
) -> None:
    """Ask until every query of `queries` (by the name it is reported under) has had enough data once."""
    missing = dict(queries)
    deadline = time.monotonic() + PATIENCE_S
    while missing and time.monotonic() < deadline:
        for name, expression in list(missing.items()):
            if enough(name, prometheus.query(expression)):
                del missing[name]
        if missing:
            time.sleep(POLL_S)
    assert not missing, "no data for: " + "; ".join(f"{name}: {query}" for name, query in missing.items())


@pytest.mark.parametrize("name", ["service", "model", "compare-versions"])
def test_every_query_of_a_dashboard_returns_data(
    deploy: Path, prometheus: Prometheus, load: Load, name: str
) -> None:
    dashboard = dashboards(deploy)[name]
    legends = {
        f"{panel['title']} ({target['refId']})": target.get("legendFormat", "")
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
    queries = {
        source: filled_in(expression)
        for source, expression in queries_of(dashboard)
        if OVER_TLS not in expression
    }
    assert legends.keys() - queries.keys() <= {"Time until the certificate ends (A)"}

    def has_data_under_its_legend(source: str, samples: list[Sample]) -> bool:
        labels = re.findall(r"\{\{(\w+)\}\}", legends.get(source, ""))
        return any(all(sample.labels.get(label) for label in labels) for sample in samples)

    wait_for_data(prometheus, queries, has_data_under_its_legend)
    assert load.ok


def test_the_dashboards_variables_offer_what_is_served(
    deploy: Path, prometheus: Prometheus, load: Load
) -> None:
    for dashboard in dashboards(deploy).values():
        offered: dict[str, set[str]] = {}
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                series, label = variable_of(variable)
                wait_for_data(prometheus, {label: filled_in(series)}, lambda _, samples: bool(samples))
                offered[label] = {
                    sample.labels.get(label, "") for sample in prometheus.query(filled_in(series))
                }
        assert offered["model"] == {*load.translators, *load.generators}
        assert offered["job"] == {"dragoman"}
        assert len(offered["instance"]) == 1


def test_every_rule_evaluates_on_data(deploy: Path, prometheus: Prometheus, load: Load) -> None:
    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(rules_of(deploy))

    # A rule whose selector finds nothing evaluates happily for ever, so ask for each selector alone.
    asked = {rule["name"] for rule in rules if rule["type"] == "recording"}
    for rule in rules_of(deploy):
        for selector in selectors(rule["expr"]):
            if not str(selector.name).startswith("kube_") and selector.name != OVER_TLS:
                matchers = ", ".join(
                    f'{each.name}{OPERATORS[str(each.op)]}"{each.value}"'
                    for each in selector.matchers.matchers
                )
                asked.add(f"{selector.name}{{{matchers}}}")
    asked.remove('dragoman_model_version_state{state="failed"}')  # this server serves all that it has
    wait_for_data(prometheus, {name: name for name in asked}, lambda _, samples: bool(samples))
    health = {
        rule["name"]: (rule["health"], rule.get("lastError", ""))
        for group in prometheus.get("rules")["groups"]
        for rule in group["rules"]
    }
    assert set(health.values()) == {("ok", "")}, health
    assert load.ok
