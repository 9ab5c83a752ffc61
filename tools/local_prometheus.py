"""The real Prometheus with the committed configuration and rules, for one server on this machine."""

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import yaml

from dragoman.common.errors import OperationError

__all__ = ["PROMETHEUS", "LocalPrometheus", "require_prometheus", "require_running", "started"]

PROMETHEUS: Final = Path(__file__).parents[1] / "deploy" / "prometheus"
_POLL_S: Final = 0.2
_START_PATIENCE_S: Final = 90.0
_LISTENS: Final = re.compile(r'msg="Listening on" address=(\S+)')


@dataclass(frozen=True)
class LocalPrometheus:
    """A process of Prometheus, and what it wrote."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @classmethod
    def start(
        cls, folder: Path, metrics_port: int, *, interval: str, port: int = 0, options: Sequence[str] = ()
    ) -> Self:
        """Start it with its files in `folder`.

        Args:
            folder: an empty one.
            metrics_port: of the server on the loopback.
            interval: of scrapes and of rules, such as `500ms`.
            port: of the loopback, where it answers; 0: any that is free.
            options: of the command `prometheus`.

        Raises:
            OperationError: it is not installed.
        """
        require_prometheus()
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = dict.fromkeys((*config["global"], "scrape_timeout"), interval)
        (scrape,) = config["scrape_configs"]
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{metrics_port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copytree(PROMETHEUS / "rules", folder / "rules")
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        log = folder / "prometheus.log"
        return cls(started([*command, *options], log), log)

    def address(self) -> str:
        """Where it answers, as HOST:PORT. Waits until it does.

        Raises:
            OperationError: it has ended, or does not answer in time.
        """
        end_s = time.monotonic() + _START_PATIENCE_S
        while time.monotonic() < end_s:
            require_running("prometheus", self.process, self.log)
            if found := _LISTENS.search(self.log.read_text()):
                return found[1]
            time.sleep(_POLL_S)
        raise OperationError(f"prometheus did not start within {_START_PATIENCE_S:g} s")


def require_prometheus() -> None:
    """Raise when the program is not there.

    Raises:
        OperationError: it is not; the message says what to install.
    """
    if shutil.which("prometheus") is None:
        raise OperationError("prometheus is not installed (Debian: apt-get install prometheus)")


def started(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a program that writes to `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603  programs of tools/


def require_running(what: str, child: "subprocess.Popen[bytes]", log: Path) -> None:
    """Raise when a program has ended.

    Raises:
        OperationError: it has; the message has its exit code and the last line that it wrote.
    """
    if (code := child.poll()) is not None:
        lines = log.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "its log is empty")
        raise OperationError(f"{what} ended with exit code {code}: {last}")
