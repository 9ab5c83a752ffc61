"""The life of a lane's process, from the host's fork to its end."""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import NoReturn, Protocol

import structlog

from dragoman.common.errors import DragomanError
from dragoman.server.engine.processes.channel import Channel
from dragoman.server.engine.processes.linux import die_with_parent, name_process
from dragoman.server.engine.processes.messages import LaneFailed, LaneReady, ToLane
from dragoman.server.engine.processes.port import SocketPort

__all__ = ["LaneStart", "Worker", "run_lane"]

_log = structlog.get_logger(__name__)


class Worker(Protocol):
    """What a lane's process runs."""

    def run(self) -> None:
        """Work until the port says that it is over."""


LaneStart = Callable[[SocketPort], Worker]
"""Makes a lane's rows and its worker; called in the lane's own process."""


def run_lane(
    start: LaneStart,
    sock: socket.socket,
    close_inherited: Callable[[], object],
    *,
    model: str,
    lane: int,
    host: int,
) -> NoReturn:
    """Be a lane. Called right after the fork; whatever happens, it does not return into the host's code.

    Args:
        start: makes what works here.
        sock: the lane's end of its channel with the host.
        close_inherited: closes what belongs to the host.
        model: of the lane.
        lane: its number.
        host: the host's process.
    """
    try:
        die_with_parent(host)
        name_process(f"lane-{lane} {model}")
        structlog.contextvars.bind_contextvars(model=model, lane=lane)
        _prefer_to_die()
        close_inherited()
        channel: Channel[ToLane] = Channel(sock, ToLane)
        try:
            worker = start(SocketPort(channel))
        except DragomanError as error:
            channel.send(LaneFailed(type(error).__name__, str(error)))
            os._exit(1)
        channel.send(LaneReady())
        worker.run()
        os._exit(0)
    except BaseException:  # noqa: BLE001  the log is all that is left
        _log.exception("lane_failed")
    finally:
        os._exit(1)


def _prefer_to_die() -> None:
    """Short of memory, the system ends a lane before the host or the server: a lane is soon replaced."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:  # noqa: PTH123
        adjusted = min(1000, int(file.read()) + 100)
        file.seek(0)
        file.write(str(adjusted))
