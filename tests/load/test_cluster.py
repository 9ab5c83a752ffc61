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
from tests.load.network import why_impossible
from tests.load.report import Report
from tests.load.rolling import Crowd

CUT = cluster.EVENTS["cut"]


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
    steps = ["before", "after: rolling restart", f"after: {cluster.EVENTS[event]}"]
    assert [row[0] for row in calls["rows"]][::2] == steps
    assert {row[2] for row in calls["rows"][:3]} == {"0"}


# `test_rolling.py` has restarts behind our client's balancer.
def test_our_client_hides_a_host_that_is_cut_off_and_one_that_stands_still(tmp_path: Path) -> None:
    # Within 12 s the client notices by itself that no packet comes.
    options = ["--events", "cut", "stop", "--cut", "12", "--stop", "2"]
    [calls] = run(tmp_path / "cluster.json", "client", *options)["tables"]
    assert len(calls["rows"]) == 5


def course(**outcomes: Counter[tuple[str, str]]) -> cluster.Course:
    """A course that has been: one caller of each kind."""
    options = argparse.Namespace(events=["cut"], clients=1)
    ended = cluster.Course([], None, options, print)  # type: ignore[arg-type]
    for kind in ("repeating", "plain", "streams"):
        counts = outcomes.get(kind, Counter()) + Counter({(CUT, "right"): 9})
        getattr(ended, kind).append(Crowd(None, outcomes=counts, slowest_s={CUT: 0.5}))  # type: ignore[arg-type]
    ended.spreads["before"] = cluster.Spread([0.32, 0.33, 0.35], 0.0)
    return ended


def broken_bounds(way: str, ended: cluster.Course) -> list[str]:
    report = Report("cluster")
    cluster.describe(way, ended, report)
    return [bound.what.partition(": ")[2] for bound in report.bounds if not bound.holds]


def test_a_stream_may_be_lost_with_its_host_and_a_call_only_through_nginx() -> None:
    lost = Counter({(CUT, "UnavailableError: gone"): 1})
    assert not broken_bounds("client", course())
    assert not broken_bounds("envoy", course(streams=lost))
    assert not broken_bounds("nginx", course(streams=lost, plain=lost))
    failed = ["calls that failed or were wrong"]
    assert broken_bounds("envoy", course(plain=lost)) == failed
    assert broken_bounds("nginx", course(repeating=lost)) == failed
    assert broken_bounds("client", course(streams=Counter({("before", "wrong"): 1}))) == failed
    assert broken_bounds("client", course(streams=lost + lost)) == [
        "calls lost with the host that was cut off"
    ]


def test_an_uneven_spread_breaks_a_bound() -> None:
    ended = course()
    ended.spreads["after"] = cluster.Spread([0.29, 0.33, 0.38], float("inf"))
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
