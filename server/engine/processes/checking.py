"""A version is tried in a process of its own, forked from the host, before the host loads it.

Whatever a bundle does there ends that process alone: native code that crashes, memory that runs out, a graph that never
ends.
"""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from dragoman.common.errors import DragomanError
from dragoman.server.engine.processes.lane_process import prefer_to_die
from dragoman.server.engine.processes.messages import Checked, CheckFailed, FromCheck
from dragoman.server.errors import BundleError, ResourceUnavailable
from dragoman.server.processes.channel import Channel, packet_pair
from dragoman.server.processes.linux import die_with_parent, how_it_ended, name_process

__all__ = ["MAX_CHECK_S", "Check", "CheckingProcess"]

MAX_CHECK_S = 600.0
"""A version that has not been tried by then never will: a run of a graph is ended much sooner (`engine/trial.py`)."""

_log = structlog.get_logger(__name__)

Check = Callable[[], Checked]
"""Loads a version and tries it; raises `DragomanError` where it cannot be served."""


class CheckingProcess:
    """A child of this process that tries a version.

    Attributes:
        channel: what the child says; it ends with the child.
        was_late: whether it was killed as its time was over.
    """

    def __init__(
        self, key: str, check: Check, poll: "select.epoll", leave_host: Callable[[], object]
    ) -> None:
        """Fork the child.

        Args:
            key: of the model.
            check: called in the child.
            poll: of the host, which reads the channel.
            leave_host: called in the child: closes and forgets what belongs to the host.

        Raises:
            OSError: the system refuses another process.
        """
        ours, theirs = packet_pair()
        host = os.getpid()
        try:
            self._pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if not self._pid:
            ours.close()
            _run(key, check, theirs, leave_host, host)
        theirs.close()
        self._ends_at_s = time.monotonic() + MAX_CHECK_S
        self.channel: Channel[FromCheck] = Channel(ours, FromCheck)
        self.was_late = False
        self._poll = poll
        poll.register(self.channel.fileno(), select.EPOLLIN)

    def end(self) -> str:
        """Kill the child if it has not ended, and reap it; returns how it ended, for people."""
        self._poll.unregister(self.channel.fileno())
        self.channel.close()
        os.kill(self._pid, signal.SIGKILL)
        return how_it_ended(os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]))

    def end_late(self) -> float:
        """Kill the child when its time is over: its channel says the rest. Returns the seconds that it has left."""
        left_s = self._ends_at_s - time.monotonic()
        if left_s <= 0:
            self.was_late = True
            self.kill()
        return max(1.0, left_s)  # what is killed may take a moment to end

    def kill(self) -> None:
        """Kill the child; `end` follows, or the host ends too."""
        os.kill(self._pid, signal.SIGKILL)

    def leave(self) -> None:
        """In another forked process: close the channel."""
        self.channel.close()


def _run(
    key: str, check: Check, sock: socket.socket, leave_host: Callable[[], object], host: int
) -> NoReturn:
    try:
        die_with_parent(host)
        name_process("model-check")
        structlog.contextvars.bind_contextvars(checking=key)
        prefer_to_die()
        leave_host()
        channel: Channel[Checked | CheckFailed] = Channel(sock, FromCheck)
        try:
            message: Checked | CheckFailed = check()
        except DragomanError as error:
            message = CheckFailed(type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001  as where a server starts
            _log.exception("check_failed")
            kind = ResourceUnavailable if isinstance(error, (MemoryError, OSError)) else BundleError
            what = f"{key}: unexpected {type(error).__name__} while it was checked"
            message = CheckFailed(kind.__name__, what)
        with contextlib.suppress(ConnectionError):
            channel.send(message)
        os._exit(0)
    except BaseException:  # noqa: BLE001  the log is all that is left
        _log.exception("check_failed")
    finally:
        os._exit(1)
