"""What the deployment tests share: one real server started as a pod starts it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BUNDLES = ROOT / "tests" / "fixtures" / "bundles"
START_PATIENCE_S = 60.0
POLL_S = 0.05


@dataclass
class Serving:
    """A server process that is ready, and where it listens."""

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int


@pytest.fixture(scope="session")
def deploy() -> Path:
    return DEPLOY


@pytest.fixture(scope="session")
def start_server(
    deploy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AbstractContextManager[Serving]]:
    """Starts `dragoman serve` on the file that pods get, with the tests' bundles and free ports."""

    @contextmanager
    def start(*overrides: str) -> Iterator[Serving]:
        log = tmp_path_factory.mktemp("server") / "log"
        command = [str(Path(sys.executable).parent / "dragoman"), "serve"]
        command += ["--config", str(deploy / "base" / "server.toml"), "--models", str(BUNDLES)]
        command += ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
        command += [part for override in overrides for part in ("--set", override)]
        with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
            try:
                yield Serving(process, *_ports(log, process))
            finally:
                process.kill()

    return start


def _ports(log: Path, process: subprocess.Popen[bytes]) -> tuple[int, int]:
    deadline = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving":
                return event["port"], event["metrics_port"]
        time.sleep(POLL_S)
    raise AssertionError(f"the server did not start: {log.read_text()}")


@pytest.fixture(scope="session")
def serving(start_server: Callable[..., AbstractContextManager[Serving]]) -> Iterator[Serving]:
    """One server for all tests that only look at it."""
    with start_server() as server:
        yield server
