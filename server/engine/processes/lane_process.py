"""The life of a lane's process, from the host's fork to its end."""

import contextlib
import gc
import os
import socket
from collections.abc import Callable
from typing import NoReturn

import structlog

from dragoman.common.errors import DragomanError
from dragoman.server.engine.lane_loop import LaneLoop, Worker
from dragoman.server.engine.processes.messages import LaneFailed, LaneReady, ToLane
from dragoman.server.engine.processes.port import SocketPort
from dragoman.server.processes.channel import Channel
from dragoman.server.processes.linux import die_with_parent, name_process, trim_memory

__all__ = ["LaneStart", "prefer_to_die", "run_lane"]

_log = structlog.get_logger(__name__)

LaneStart = Callable[[SocketPort], Worker]
"""Makes a model's rows on a lane and its worker; called in the lane's own process."""


def run_lane(
    starts: dict[str, LaneStart],
    sock: socket.socket,
    leave_host: Callable[[], object],
    *,
    lane: int,
    host: int,
) -> NoReturn:
    """Be a lane. Called right after the fork; whatever happens, it does not return into the host's code.

    Args:
        starts: make what works here, by model; it is empty afterwards.
        sock: the lane's end of its channel with the host.
        leave_host: closes and forgets what belongs to the host.
        lane: its number.
        host: the host's process.
    """
    try:
        die_with_parent(host)
        name_process(f"lane-{lane}")
        structlog.contextvars.bind_contextvars(lane=lane)
        prefer_to_die()
        ours = dict(starts)
        starts.clear()
        leave_host()
        channel: Channel[ToLane] = Channel(sock, ToLane)
        port = SocketPort(channel)
        try:
            workers = {model: start(port) for model, start in ours.items()}
        except DragomanError as error:
            channel.send(LaneFailed(type(error).__name__, str(error)))
            os._exit(1)
        loop = LaneLoop(port, workers, on_dropped=_free_memory)
        ours.clear()
        workers.clear()  # the loop alone has what a model takes
        channel.send(LaneReady())
        loop.run()
        os._exit(0)
    except BaseException:  # noqa: BLE001  the log is all that is left
        _log.exception("lane_failed")
    finally:
        os._exit(1)


def _free_memory(_model: str) -> None:
    """A model's worker has gone: give back what it took. What the host had before the fork is not looked at."""
    gc.collect()
    trim_memory()


def prefer_to_die() -> None:
    """Short of memory, the system ends a lane before the host or the server: a lane is soon replaced."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:  # noqa: PTH123
        adjusted = min(1000, int(file.read()) + 100)
        file.seek(0)
        file.write(str(adjusted))
