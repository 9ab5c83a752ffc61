"""Start a host process, or another one of the server's own.

Nothing here takes long to import: a server does it before anything else.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from dragoman.server.engine.processes.linux import adopt_orphans

__all__ = ["SpawnedHost", "spawn", "start_process"]

_PACKAGE = __name__.rpartition(".")[0]
_ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Libraries read it when they are imported: more threads than one could not be forked."""


@dataclass(frozen=True, slots=True)
class SpawnedHost:
    """A host process that waits for its first message.

    Attributes:
        process: it, the leader of a process group that its lanes are in.
        control: the server's end of the sockets between them.
        log: the end of a socket on which host and lanes send what they log.
    """

    process: "subprocess.Popen[bytes]"
    control: socket.socket
    log: socket.socket

    def abandon(self) -> None:
        """End it: nobody needs it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        adopt_orphans(adopt=False)
        self.control.close()
        self.log.close()


def spawn(module: str) -> SpawnedHost:
    """Run `main` of `module` in a process with the import path of this one, and with one thread.

    It ends with the thread that calls this, so call it in the main one.

    Raises:
        OSError: the system refuses another process.
    """
    control, of_host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log, log_of_host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    adopt_orphans()  # lanes of a host that died: else they would be zombies where process 1 does not look
    with of_host, log_of_host:
        try:
            process = start_process(_PACKAGE, module, (of_host.fileno(), log_of_host.fileno()), _ONE_THREAD)
        except OSError:
            control.close()
            log.close()
            raise
    log.setblocking(False)
    return SpawnedHost(process, control, log)


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
