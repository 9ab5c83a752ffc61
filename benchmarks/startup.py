"""From process start to SERVING, and the memory of all processes of the server.

    python -m benchmarks.startup models/dates/1 --runs 7

Each run starts `dragoman serve` on the bundle alone, polls grpc.health.v1 until it says SERVING, decodes 64 of the
bundle's golden inputs at once, and stops the server with SIGTERM. Memory is the proportional set size (PSS).
"""

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dragoman.client import Client
from dragoman.common.memory import proportional_bytes

_SERVING_EVENT = re.compile(r'"port": (\d+)')


@contextmanager
def server(models: Path) -> Iterator[tuple[subprocess.Popen[str], float, int]]:
    """A server on `models`: its process, the seconds until SERVING, its port."""
    command = [
        shutil.which("dragoman") or sys.exit("dragoman is not on PATH"),
        "serve",
        "--models",
        str(models),
    ]
    command += ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--set", "logging.format=json"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if '"serving"' in line and (event := _SERVING_EVENT.search(line)):
                break
        else:
            sys.exit("the server ended before it served")
        port = int(event[1])
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            answer = stub.Check(request, wait_for_ready=True, timeout=60)  # type: ignore[attr-defined]
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        yield process, time.perf_counter() - started, port
    finally:
        process.terminate()
        if code := process.wait(timeout=60):
            sys.exit(f"the server ended with exit code {code}")


def _memory_mib(pid: int) -> float:
    server = psutil.Process(pid)
    return sum(proportional_bytes(each.pid) for each in (server, *server.children(recursive=True))) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="a translation bundle: MODELS/NAME/VERSION")
    parser.add_argument(
        "--runs", type=int, default=7, help="counted runs, after one that warms the disk cache"
    )
    options = parser.parse_args()
    texts = [
        example["text"]
        for example in json.loads((options.bundle / "bundle.json").read_text())["golden_examples"]
    ]
    seconds, idle, loaded = [], [], []
    with tempfile.TemporaryDirectory() as models:
        shutil.copytree(options.bundle, Path(models) / options.bundle.parent.name / "1")
        for _ in range(options.runs + 1):
            with server(Path(models)) as (process, start_s, port):
                seconds.append(start_s)
                idle.append(_memory_mib(process.pid))
                with Client(f"127.0.0.1:{port}") as client:
                    client.translate((texts * 64)[:64], model=options.bundle.parent.name)
                loaded.append(_memory_mib(process.pid))
    for name, values, unit in (
        ("process start to SERVING", seconds[1:], "s"),
        ("memory of all processes, idle", idle[1:], "MiB"),
        ("memory of all processes, after 64 inputs at once", loaded[1:], "MiB"),
    ):
        print(
            f"{name}: median {statistics.median(values):.2f} {unit} (min {min(values):.2f}, max {max(values):.2f})"
        )
    print(f"read on {psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
