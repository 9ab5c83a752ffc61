"""Hosts that are restarted, cut off and stopped under load: small runs, and what the program makes of outcomes."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.load import cluster, gateways
from tests.load.cluster_course import EVENTS, Callers, Course, Spread
from tests.load.network import why_impossible
from tests.load.report import Report

CUT = EVENTS["cut"]


def run(figures: Path, way: str, *options: str) -> dict[str, Any]:
    """What the program measured; the test skips where this machine does not allow it."""
    if why := why_impossible() or (way in gateways.GATEWAYS and gateways.why_missing(way)):
        pytest.skip(why)
    command = [sys.executable, "-m", "tests.load.cluster", "--ways", way, "--clients", "2", *options]
    command += ["--pause", "0.02", "--json", str(figures)]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command,
        cwd=gateways.ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(figures.read_text())
    return told


@pytest.mark.parametrize(("way", "event"), [("nginx", "cut"), ("envoy", "stop")])
def test_gateways_hide_restarts_and_more(way: str, event: str, tmp_path: Path) -> None:
    options = ["--events", "restart", event, "--cut", "12", "--stop", "2"]
    [calls] = run(tmp_path / "cluster.json", way, *options)["tables"]
    steps = ["before", "after: rolling restart", f"after: {EVENTS[event]}"]
    assert [row[0] for row in calls["rows"]][::2] == steps


# `test_rolling.py` has restarts behind our client's balancer.
def test_our_client_hides_a_host_that_is_cut_off_and_one_that_stands_still(tmp_path: Path) -> None:
    # Within 12 s the client notices by itself that no packet comes.
    options = ["--events", "cut", "stop", "--cut", "12", "--stop", "2"]
    [calls] = run(tmp_path / "cluster.json", "client", *options)["tables"]
    assert len(calls["rows"]) == 5


RESTART = EVENTS["restart"]
GONE = "UnavailableError: gone"


def course(failed: Counter[tuple[str, str]], *, repeats: bool = True, streams: bool = False) -> Course:
    """A course that has been, with one caller who had calls that failed."""
    ended = Course([], None, argparse.Namespace(events=["restart", "cut"]), print)  # type: ignore[arg-type]
    outcomes = failed + Counter({(CUT, "right"): 9})
    caller = Callers(None, outcomes=outcomes, slowest_s={CUT: 0.5}, repeats=repeats, streams=streams)  # type: ignore[arg-type]
    ended.callers.append(caller)
    ended.spreads["before"] = Spread([0.32, 0.33, 0.35], 0.0)
    return ended


def broken_bounds(way: str, ended: Course) -> list[str]:
    report = Report("cluster")
    cluster.describe(way, ended, report)
    return [bound.what.partition(": ")[2] for bound in report.bounds if not bound.holds]


@pytest.mark.parametrize("way", cluster.WAYS)
def test_a_stream_may_be_lost_with_its_host_and_one_call_only_through_nginx(way: str) -> None:
    failed = ["other calls that failed or were wrong"]
    cut, restart = Counter({(CUT, GONE): 1}), Counter({(RESTART, GONE): 1})
    assert broken_bounds(way, course(Counter())) == []
    assert broken_bounds(way, course(cut, streams=True)) == []
    assert broken_bounds(way, course(cut)) == failed
    assert broken_bounds(way, course(restart, streams=True)) == failed
    assert broken_bounds(way, course(Counter({("before", "wrong"): 1}), streams=True)) == failed
    for lost in (cut, restart):
        assert broken_bounds(way, course(lost, repeats=False)) == ([] if way == "nginx" else failed)
    assert broken_bounds(way, course(Counter({(CUT, "wrong"): 1}), streams=True)) == failed
    many = Counter({(CUT, GONE): 2})
    assert broken_bounds(way, course(many, streams=True)) == [f"calls that may be lost, {CUT}"]


def test_an_uneven_spread_breaks_a_bound() -> None:
    ended = course(Counter())
    ended.spreads["after"] = Spread([0.29, 0.33, 0.38], float("inf"))
    assert broken_bounds("client", ended) == ["largest deviation from an even spread"]


def test_a_gateway_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gateways, "OWN_ENVOY", Path("/nowhere"))
    monkeypatch.setattr(shutil, "which", lambda name: None if name in gateways.GATEWAYS else f"/bin/{name}")
    monkeypatch.setattr(cluster, "why_impossible", lambda: "")
    assert cluster.main(["--ways", "nginx", "envoy"]) == 1
    message = capsys.readouterr().err
    assert "nginx is not installed" in message
    assert "envoy is not installed" in message
