"""A server under load, with Prometheus beside it: somewhere to look at metrics, alerts and `dragoman top`.

python -m tools.watch models --rate 20
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tools.local_prometheus import PROMETHEUS, LocalPrometheus, require_prometheus, require_running, started

from dragoman.cli.server_process import ServerProcess, running_server
from dragoman.client import Client
from dragoman.common.errors import DragomanError, OperationError

GRAFANA: Final = PROMETHEUS.parent / "grafana"
_INTERVAL: Final = "1s"
_FOR_GOOD_S: Final = 10**7
_POLL_S: Final = 0.2
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
    require_prometheus()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dragoman-watch-")))
    server = stack.enter_context(running_server(models))
    children: Children = {}
    stack.enter_context(_ended(children))
    prometheus = LocalPrometheus.start(folder, server.metrics_port, interval=_INTERVAL, port=prometheus_port)
    children["prometheus"] = prometheus.process
    url = f"http://{prometheus.address()}"
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
            require_running(what, child, _log(folder, what))
        if server.process.poll() is not None:
            raise OperationError(f"the server ended with exit code {server.process.returncode}")
        time.sleep(_POLL_S)


def _load(
    server: ServerProcess, models: Path, name: str, rate: float, folder: Path
) -> "subprocess.Popen[bytes]":
    """The golden examples of a model as calls at random times."""
    command = [sys.executable, "-P", "-m", "dragoman", "bench", "--target", server.target]
    command += ["--model", name.partition("/")[0], "--rate", f"{rate:g}", "--inputs", str(models / name)]
    return started([*command, "--duration", str(_FOR_GOOD_S)], _log(folder, f"the load on {name}"))


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
