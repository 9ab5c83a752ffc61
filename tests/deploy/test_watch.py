"""`make watch`: a server under load, and Prometheus that scrapes it."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.deploy.conftest import BUNDLES, ROOT
from tests.deploy.test_prometheus import PATIENCE_S, POLL_S, Prometheus

PROGRAM = [sys.executable, "-m", "tools.watch"]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_calls_are_seen_in_prometheus_and_nothing_is_left_running() -> None:
    command = [*PROGRAM, str(BUNDLES), "--prometheus-port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            shown = ""
            while not shown.endswith("Ctrl-C ends all of it.\n"):
                line = process.stdout.readline()
                assert line, process.stderr and process.stderr.read()
                shown += line
            children = psutil.Process(process.pid).children(recursive=True)
            logs = Path(re.search(r"^logs +(.+)$", shown, re.MULTILINE)[1])  # type: ignore[index]
            prometheus = Prometheus(re.search(r"http://(\S+)/alerts", shown)[1])  # type: ignore[index]
            end_s = time.monotonic() + PATIENCE_S
            while not all(
                prometheus.query(f'sum(rate(dragoman_requests_total{{model="{model}",code="OK"}}[5s]))')
                for model in ("spell", "count")
            ):
                assert time.monotonic() < end_s, shown
                time.sleep(POLL_S)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    assert len(children) >= 4, "server, load on two models, Prometheus"
    psutil.wait_procs(children, PATIENCE_S)
    assert not any(child.is_running() for child in children)
    assert not logs.exists()


def test_without_prometheus_it_says_what_to_install() -> None:
    done = subprocess.run(
        [*PROGRAM, str(BUNDLES)],
        cwd=ROOT,
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "error: prometheus is not installed (Debian: apt-get install prometheus)\n"
