"""Start another process of the server's own program. Importing this takes no time: a server does it before all else."""

import os
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["start_process"]


def start_process(
    package: str,
    module: str,
    descriptors: Sequence[int],
    environment: dict[str, str] | None = None,
    *,
    arguments: Sequence[str] = (),
) -> "subprocess.Popen[bytes]":
    """Run `python -m package module arguments descriptors PID`, where PID is this process, and hand on the descriptors.

    The process imports what this one would import, wherever that lies, and nothing else (-P). It has a process group
    of its own: Ctrl-C in a terminal goes to the server alone.

    Raises:
        OSError: the system refuses another process.
    """
    numbers = map(str, (*descriptors, os.getpid()))
    return subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-P", "-m", package, module, *arguments, *numbers],
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=tuple(descriptors),
        env=_environment() | (environment or {}),
        process_group=0,
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
