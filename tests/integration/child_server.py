"""`python -m dragoman.server` as a child process, and the events that it logs."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.integration.serving import BUNDLES, PATIENCE_S

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


RUN_SERVER = "import runpy; runpy.run_module('dragoman.server', run_name='__main__')"


class Process:
    """A server process and the events it logged.

    `program` is Python code to run before the server, in the same process; lanes are threads then, within its reach,
    unless `arguments` say otherwise. `stderr` is where the log goes instead of into `events`.
    """

    def __init__(self, *arguments: str, program: str = "", stderr: int = subprocess.PIPE) -> None:
        if program and not any("engine.lanes_run_in" in each for each in arguments):
            arguments += ("--set", "engine.lanes_run_in=threads")
        command = [sys.executable, "-c", f"{program}\n{RUN_SERVER}", "--log-format", "json", *arguments]
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        self.events: list[dict[str, Any]] = []

    def wait_for(self, event: str) -> dict[str, Any]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == event:
                return self.events[-1]
        raise AssertionError(f"the server ended without {event!r}: {self.events}")

    def wait_for_end(self) -> int:
        assert self.process.stderr is not None
        self.events += [json.loads(line) for line in self.process.stderr]
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def running(*arguments: str, program: str = "", stderr: int = subprocess.PIPE) -> Iterator[Process]:
    server = Process(*arguments, program=program, stderr=stderr)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def ports(models: Path = BUNDLES) -> Sequence[str]:
    return ("--models", str(models), "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0")


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """Give a port for a server that cannot tell its own. The kernel gives the port to no other program meanwhile."""
    with socket.socket() as holder:  # bound and not listening: a server may bind beside it, and listen
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            holder.setsockopt(socket.SOL_SOCKET, option, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
