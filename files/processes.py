"""The processes that answer blocks, as the command starts them. Nothing here takes long to import.

So they import and load while the command does.
"""

import os
import signal
import socket
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from dragoman.common.errors import OperationError
from dragoman.server.engine.processes.spawn import ONE_THREAD
from dragoman.server.processes.start import start_process

__all__ = ["Processes"]

_HOST = "dragoman.files.host"
_PACKAGE = "dragoman.server.engine.processes"


class Processes:
    """A host that waits for its first message, and connections for the workers that it will fork.

    They end with this process, however that ends. Make them in the main thread: the kernel takes the thread that starts
    a process for its parent.

    Attributes:
        control: the connection to the host.
        workers: the connections to the workers.
    """

    def __init__(self, num_workers: int) -> None:
        """Start the host of `num_workers` workers.

        Raises:
            OperationError: the system refuses a process or a socket.
        """
        try:
            pairs = [socket.socketpair() for _ in range(num_workers + 1)]
            theirs = [other for _, other in pairs]
            self._process = start_process(_PACKAGE, _HOST, [each.fileno() for each in theirs], ONE_THREAD)
        except OSError as error:
            raise OperationError(f"cannot start {num_workers} processes: {error.strerror}") from error
        for each in theirs:
            each.close()
        self.control, *self.workers = (Connection(own.detach()) for own, _ in pairs)

    def close(self) -> None:
        """End all processes at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for connection in (self.control, *self.workers):
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
