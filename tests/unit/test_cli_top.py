"""What `dragoman top` makes of pages: by pages that the test writes."""

import math
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from rich.console import Console

from dragoman.cli.top.figures import History, Span, models_of, quantile, server_of
from dragoman.cli.top.pages import Page, parsed
from dragoman.cli.top.view import Servers, screen


class Played:
    """The metrics of a server, in the library that the server has them in."""

    def __init__(self, start_s: float = 1000.0) -> None:
        self.registry = CollectorRegistry()
        self.start = Gauge("process_start_time_seconds", ".", registry=self.registry)
        self.start.set(start_s)
        given: Any = {"namespace": "dragoman", "registry": self.registry}
        self.calls = Counter("requests", ".", ["model", "method", "code"], **given)
        self.refused = Counter("rejected_requests", ".", ["model", "stage", "reason"], **given)
        self.tokens = Counter("output_tokens", ".", ["model"], **given)
        self.cpu = Counter("process_cpu_seconds", ".", ["process"], **given)
        self.phase = Gauge("phase", ".", ["phase"], **given)
        self.used = Gauge("slots_used", ".", ["model"], **given)
        self.slots = Gauge("slots_total", ".", ["model"], **given)
        self.waiting = Gauge("requests_waiting", ".", ["model"], **given)
        self.info = Gauge("model_info", ".", ["model", "version"], **given)
        self.seconds = Histogram(
            "request_duration_seconds", ".", ["model", "method"], buckets=(0.1, 0.2, 0.4), **given
        )
        self.rows = Histogram("batch_rows", ".", ["model"], buckets=(1, 2, 4), **given)
        for phase in ("serving", "draining"):
            self.phase.labels(phase).set(float(phase == "serving"))
        self.slots.labels("dates").set(64)
        for version in ("9", "10"):
            self.info.labels("dates", version).set(1)

    def page(self) -> Page:
        return parsed(generate_latest(self.registry).decode())


def span(played: Played, seconds: float = 2.0) -> Span:
    """From a page without anything to the one that is there now."""
    history = History(window_s=60.0)
    history.add(0.0, Played().page())
    history.add(seconds, played.page())
    found = history.span()
    assert found is not None
    return found


def test_a_model_has_its_rates_and_percentiles() -> None:
    played = Played()
    played.calls.labels("dates", "Translate", "OK").inc(30)
    played.calls.labels("dates", "Translate", "RESOURCE_EXHAUSTED").inc(10)
    played.calls.labels("other", "Translate", "OK").inc(1000)
    played.refused.labels("dates", "admission", "no_time").inc(10)
    played.tokens.labels("dates").inc(500)
    for method, seconds in (
        ("Translate", 0.05),
        ("Translate", 0.15),
        ("ModelInfer", 0.15),
        ("ModelInfer", 9.0),
    ):
        played.seconds.labels("dates", method).observe(seconds)
    played.used.labels("dates").set(48)
    played.waiting.labels("dates").set(5)
    [model] = models_of([span(played)])
    assert (model.model, model.versions) == ("dates", ("9", "10"))
    assert (model.calls, model.failed, model.refused, model.tokens) == (20.0, 5.0, 5.0, 250.0)
    assert list(model.latency_s) == pytest.approx([0.15, 0.4, 0.4])
    assert (model.slots_used, model.slots_total, model.waiting) == (48, 64, 5)
    assert model.first_token_s is None, "nothing was counted"


def test_models_are_added_up_over_servers() -> None:
    one, other = Played(), Played()
    one.calls.labels("dates", "Translate", "OK").inc(30)
    other.calls.labels("dates", "Translate", "OK").inc(10)
    for seconds in (0.05, 0.05, 0.05):
        one.seconds.labels("dates", "Translate").observe(seconds)
    other.seconds.labels("dates", "Translate").observe(0.3)
    [model] = models_of([span(one), span(other)])
    assert (model.calls, model.slots_total) == (20.0, 128)
    assert model.latency_s[0] == pytest.approx(0.1 * 2 / 3)
    assert model.latency_s[2] == pytest.approx(0.2 + 0.2 * 0.96)


def test_the_batch_is_the_mean_over_the_runs_of_all_servers() -> None:
    busy, idle, asleep = Played(), Played(), Played()
    for _ in range(98):
        busy.rows.labels("dates").observe(10)
    for _ in range(2):
        idle.rows.labels("dates").observe(1)
    [model] = models_of([span(busy), span(idle), span(asleep)])
    assert model.batch_rows == pytest.approx((98 * 10 + 2 * 1) / 100)
    [model] = models_of([span(asleep)])
    assert model.batch_rows is None


def test_a_process_that_was_replaced_counts_from_its_start() -> None:
    before, now = Played(), Played()
    for process, cpu_before, cpu_now in (("front-0", 5.0, 7.0), ("lane-0", 100.0, 1.0)):
        before.cpu.labels(process).inc(cpu_before)
        now.cpu.labels(process).inc(cpu_now)
    server = server_of(Span(before.page(), now.page(), 2.0), wall_s=1500.0)
    assert (server.cpu_cores, server.phase, server.up_s) == (1.5, "serving", 500.0)


def test_a_server_that_was_started_anew_has_no_history() -> None:
    old, new = Played(), Played(start_s=2000.0)
    old.calls.labels("dates", "Translate", "OK").inc(100)
    new.calls.labels("dates", "Translate", "OK").inc(1)
    history = History(window_s=60.0)
    history.add(0.0, old.page())
    history.add(1.0, new.page())
    found = history.span()
    assert found is not None
    assert found.rate("requests_total") == 0.0
    new.calls.labels("dates", "Translate", "OK").inc(6)
    history.add(3.0, new.page())
    found = history.span()
    assert found is not None
    assert found.rate("requests_total") == 3.0


def test_rates_are_over_the_window() -> None:
    played = Played()
    history = History(window_s=10.0)
    for second in range(31):
        history.add(float(second), played.page())
        played.calls.labels("dates", "Translate", "OK").inc(1 if second < 20 else 5)
    found = history.span()
    assert found is not None
    assert (found.seconds, found.rate("requests_total")) == (10.0, 5.0)


def test_quantiles_are_within_a_bucket_of_the_true_ones() -> None:
    values = np.random.default_rng(0).lognormal(-3, 1, 5000)
    bounds = [0.005 * 1.5**power for power in range(20)]
    buckets = {bound: float((values <= bound).sum()) for bound in bounds} | {math.inf: float(len(values))}
    for q in (0.01, 0.5, 0.95, 0.99, 1.0):
        found, true = quantile(q, buckets), float(np.quantile(values, q))
        assert found is not None
        below = max([0.0, *(bound for bound in bounds if bound < true)])
        assert below <= found <= min(bound for bound in bounds if bound >= true)
    assert quantile(0.5, {0.1: 0.0, math.inf: 0.0}) is None
    assert quantile(0.5, {0.1: 0.0, math.inf: 4.0}) == 0.1, "above all finite bounds: the highest one"


@pytest.mark.parametrize("width", [20, 60, 80, 100, 120, 150, 300])
def test_the_screen_fits_the_terminal(width: int) -> None:
    played = Played()
    played.used.labels("dates").set(64)
    there = span(played)
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        servers: Servers = {"a:8002": server_of(there, 0.0), "b:8002": "no metrics from b:8002: refused"}
        console.print(screen(servers, models_of([there]), title="every 1 s", width=width))
    lines = captured.get().splitlines()
    assert all(len(line) <= width for line in lines)
    [model] = [line for line in lines if line.startswith("dates/9,10")]
    assert ("64/64" in model) == (width >= 80)
    assert ("OLDEST" in captured.get()) == (width >= 150)
