"""A real `dragoman serve` as a child process."""

import collections
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dragoman.common.errors import OperationError

__all__ = ["ServerProcess", "running_server"]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ServerProcess:
    """A server that answers.

    Attributes:
        port: Where it speaks gRPC, on the loopback.
        metrics_port: Where it speaks HTTP.
        start_s: Seconds from starting the process to its saying that it serves.
        process: The process itself.
    """

    port: int
    metrics_port: int
    start_s: float
    process: "subprocess.Popen[str]"

    @property
    def target(self) -> str:
        """The address of the server, as a client takes it."""
        return f"127.0.0.1:{self.port}"

    def stop(self) -> float:
        """Tell it to stop (SIGTERM) and wait until it has; returns how long that took, in seconds.

        Raises:
            OperationError: it did not leave with exit code 0, or not at all.
        """
        begin_s = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise OperationError(f"the server did not stop within {STOP_TIMEOUT_S:g} s of SIGTERM") from error
        if code != 0:
            raise OperationError(f"the server left with exit code {code} after SIGTERM")
        return time.perf_counter() - begin_s


_SERVE = ("-P", "-m", "dragoman", "serve")


@contextlib.contextmanager
def running_server(
    models: Path, *, overrides: Sequence[str] = (), program: Sequence[str] = _SERVE
) -> Iterator[ServerProcess]:
    """Serve `models` on free ports of the loopback; a server that still runs when the block ends is killed.

    Args:
        models: Folder of models.
        overrides: Settings, `section.key=value` each.
        program: What Python runs, if not the `dragoman` command: it takes the same options.

    Raises:
        OperationError: it did not start, with the reason from its log.
    """
    command = [sys.executable, *program, "--models", str(models)]
    command += ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    for override in ("logging.format=json", *overrides):
        command += ["--set", override]
    begin_s = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as process:  # noqa: S603
        log = _Log(process)
        try:
            event = log.wait_until_serving(START_TIMEOUT_S)
            yield ServerProcess(
                int(event["port"]), int(event["metrics_port"]), time.perf_counter() - begin_s, process
            )
        finally:
            process.kill()  # does nothing to one that has left
            process.wait()
            log.join()


class _Log:
    """Reads the server's log to its end, so that the server never waits for a reader."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._lines: collections.deque[str] = collections.deque(maxlen=20)
        self._settled = threading.Event()
        self._serving: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_until_serving(self, timeout_s: float) -> dict[str, Any]:
        """The fields of the event `serving`."""
        if not self._settled.wait(timeout_s):
            raise OperationError(f"the server did not start within {timeout_s:g} s")
        if self._serving is None:
            raise OperationError(f"the server did not start: {self._reason()}")
        return self._serving

    def join(self) -> None:
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line)
            event = _event(line)
            if event.get("event") == "serving":
                self._serving = event
                self._settled.set()
        self._settled.set()

    def _reason(self) -> str:
        errors = [_event(line).get("error") for line in self._lines]
        reasons = [error for error in errors if error] or list(self._lines) or ["it said nothing"]
        return str(reasons[-1]).strip()


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
