"""A server under load, with Prometheus beside it: somewhere to look at metrics, alerts and `dragoman top`.

python tools/watch.py models --rate 20
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import yaml

from dragoman.cli.server_process import ServerProcess, running_server
from dragoman.client import Client
from dragoman.common.errors import DragomanError, OperationError

PROMETHEUS: Final = Path(__file__).parents[1] / "deploy" / "prometheus"
GRAFANA: Final = PROMETHEUS.parent / "grafana"
_INTERVAL: Final = "1s"
_FOR_GOOD_S: Final = 10**7
_POLL_S: Final = 0.2
_START_PATIENCE_S: Final = 30.0
QUERIES: Final = (
    "sum by (model) (rate(dragoman_requests_total[30s]))",
    "histogram_quantile(0.99, sum by (le, model) (rate(dragoman_request_duration_seconds_bucket[30s])))",
    "sum by (model) (dragoman_requests_running + dragoman_requests_waiting) / sum by (model) (dragoman_slots_total)",
)
"""Calls a second, the 99th percentile of their duration, and the share of slots that is taken or waited for."""

Children = dict[str, "subprocess.Popen[bytes]"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, help="a models folder")
    parser.add_argument("--rate", type=float, default=20.0, help="calls a second, for each model")
    parser.add_argument("--prometheus-port", type=int, default=9090, help="0: any that is free")
    given = parser.parse_args(arguments)
    try:
        with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
            _watch(given.models, given.rate, given.prometheus_port, stack)
    except (DragomanError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _watch(models: Path, rate: float, prometheus_port: int, stack: contextlib.ExitStack) -> None:
    if shutil.which("prometheus") is None:
        raise OperationError("prometheus is not installed (Debian: apt-get install prometheus)")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dragoman-watch-")))
    server = stack.enter_context(running_server(models))
    children: Children = {}
    stack.enter_context(_ended(children))
    children["prometheus"] = _prometheus(server, folder, prometheus_port)
    url = f"http://localhost:{_listening_port(folder, children['prometheus'])}"
    with Client(server.target) as client:
        names = [f"{model.name}/{model.version}" for model in client.models()]
    for name in names:
        children[f"the load on {name}"] = _load(server, models, name, rate, folder)
    graphs = "&".join(
        f"g{number}.expr={urllib.parse.quote(query)}&g{number}.tab=0&g{number}.range_input=5m"
        for number, query in enumerate(QUERIES)
    )
    print(f"server      {server.target}, metrics at http://localhost:{server.metrics_port}/metrics")
    print(f"load        {rate:g} calls a second for each of: {', '.join(names)}")
    print(f"terminal    dragoman top localhost:{server.metrics_port}")
    print(f"alerts      {url}/alerts")
    print(f"graphs      {url}/graph?{graphs}")
    print(f"dashboards  import {os.path.relpath(GRAFANA)}/*.json")
    print(f"            into a Grafana whose data source is {url}")
    print(f"logs        {folder}")
    print("Ctrl-C ends all of it.", flush=True)
    while True:
        for what, child in children.items():
            _require_running(what, child, folder)
        if server.process.poll() is not None:
            raise OperationError(f"the server ended with exit code {server.process.returncode}")
        time.sleep(_POLL_S)


def _prometheus(server: ServerProcess, folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """Prometheus with the committed configuration and rules, only quicker and for this server."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys((*config["global"], "scrape_timeout"), _INTERVAL)
    (scrape,) = config["scrape_configs"]
    scrape["static_configs"] = [{"targets": [f"localhost:{server.metrics_port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copytree(PROMETHEUS / "rules", folder / "rules")
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    return _started(command, _log(folder, "prometheus"))


def _listening_port(folder: Path, prometheus: "subprocess.Popen[bytes]") -> int:
    end_s = time.monotonic() + _START_PATIENCE_S
    while time.monotonic() < end_s:
        _require_running("prometheus", prometheus, folder)
        if found := re.search(
            r'msg="Listening on" address=\S*:(\d+)', _log(folder, "prometheus").read_text()
        ):
            return int(found[1])
        time.sleep(_POLL_S)
    raise OperationError(f"prometheus did not start within {_START_PATIENCE_S:g} s")


def _load(
    server: ServerProcess, models: Path, name: str, rate: float, folder: Path
) -> "subprocess.Popen[bytes]":
    """The golden examples of a model as calls at random times."""
    command = [sys.executable, "-P", "-m", "dragoman", "bench", "--target", server.target]
    command += ["--model", name.partition("/")[0], "--rate", f"{rate:g}", "--inputs", str(models / name)]
    return _started([*command, "--duration", str(_FOR_GOOD_S)], _log(folder, f"the load on {name}"))


def _require_running(what: str, child: "subprocess.Popen[bytes]", folder: Path) -> None:
    if (code := child.poll()) is not None:
        lines = _log(folder, what).read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "its log is empty")
        raise OperationError(f"{what} ended with exit code {code}: {last}")


def _started(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603  programs of this file


@contextlib.contextmanager
def _ended(children: Children) -> Iterator[None]:
    """Ends all children when the block does."""
    try:
        yield
    finally:
        for child in children.values():
            child.send_signal(signal.SIGTERM)
        for child in children.values():
            child.wait()


def _log(folder: Path, what: str) -> Path:
    return folder / f"{what.replace(' ', '-').replace('/', '-')}.log"


if __name__ == "__main__":
    sys.exit(main())
