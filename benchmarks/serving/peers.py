"""The peers' own virtual environment, and a worker process in it that is spoken to in lines of JSON."""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import platformdirs
from rich.console import Console

__all__ = ["PEERS_FOLDER", "PeerWorker", "add_peers_option", "peers_python"]

PEERS_FOLDER: Final = Path(__file__).parents[1] / "peers"
_REQUIREMENTS: Final = PEERS_FOLDER / "requirements.txt"


def add_peers_option(parser: argparse.ArgumentParser) -> None:
    """`--peers-venv DIR`, for `peers_python`."""
    parser.add_argument(
        "--peers-venv",
        type=Path,
        default=platformdirs.user_cache_path("dragoman") / "peers-venv",
        metavar="DIR",
        help="the peers' virtual environment, made on first use",
    )


def peers_python(venv: Path) -> Path:
    """The interpreter of `venv`, which is made, or brought to the pinned versions, where that has not been done."""
    python = venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    mark = venv / "dragoman-peers"
    wanted = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text(encoding="ascii") == wanted:
        return python
    with Console(stderr=True).status(f"installing the peers into {venv}"):
        _run(sys.executable, "-m", "venv", str(venv))
        install = ("-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--requirement")
        _run(str(python), *install, str(_REQUIREMENTS))
    mark.write_text(wanted, encoding="ascii")
    return python


def _run(*command: str) -> None:
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {code}")


class PeerWorker:
    """A process that answers one request at a time. It computes only while it is asked to."""

    def __init__(self, python: Path, script: Path, environment: Mapping[str, str] | None = None) -> None:
        self._script = script
        self._process = subprocess.Popen(
            [str(python), str(script)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            RuntimeError: the peer failed, or its process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._script.name} has ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self._script.name}: {request}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
