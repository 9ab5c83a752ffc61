"""Start a host process. Nothing here takes long to import: a server does it before anything else."""

import os
import signal
import socket
import subprocess
from dataclasses import dataclass

from dragoman.server.processes.linux import adopt_orphans
from dragoman.server.processes.start import start_process

__all__ = ["ONE_THREAD", "SpawnedHost", "spawn"]

_PACKAGE = __name__.rpartition(".")[0]
ONE_THREAD = {
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
            process = start_process(_PACKAGE, module, (of_host.fileno(), log_of_host.fileno()), ONE_THREAD)
        except OSError:
            control.close()
            log.close()
            raise
    log.setblocking(False)
    return SpawnedHost(process, control, log)
