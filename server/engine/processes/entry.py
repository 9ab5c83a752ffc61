"""The life of a host process: what the module that a `Supervisor` runs calls in its `main`."""

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

import structlog

from dragoman.common.errors import DragomanError
from dragoman.server.engine.processes.host import Host
from dragoman.server.engine.processes.host_changes import ModelSource
from dragoman.server.engine.processes.host_lanes import LaneStartError
from dragoman.server.engine.processes.messages import Begin, LoadingFailed, ToHost
from dragoman.server.processes.channel import Channel
from dragoman.server.processes.logs import send_logs_to

__all__ = ["run_host"]

_log = structlog.get_logger(__name__)


def run_host(load: Callable[[Host, Begin], tuple[int, ModelSource]]) -> NoReturn:
    """Load models, start the lanes and serve until the server ends.

    Args:
        load: adds models to the host; returns how many lanes there are to be, and where further models come from.
    """
    server_descriptor, log_descriptor = map(int, sys.argv[2:4])
    send_logs_to(socket.socket(fileno=log_descriptor))
    server: Channel[ToHost] = Channel(socket.socket(fileno=server_descriptor), ToHost)
    code = 1
    try:
        begin, _ = server.wait()
        assert isinstance(begin, Begin)
        host = Host(server, begin)
        host.serve(*load(host, begin))
    except ConnectionError:  # the server has ended
        code = 0
    except LaneStartError as error:
        _fail(server, error.kind, str(error))
    except DragomanError as error:
        _fail(server, type(error).__name__, str(error))
    except BaseException as error:  # noqa: BLE001  the log is all that is left
        _log.exception("engine_host_failed")
        _fail(server, "", f"the engine's host failed: {type(error).__name__}")
    os._exit(code)


def _fail(server: "Channel[ToHost]", kind: str, message: str) -> None:
    """Say why there is nothing to serve. Lanes end with this process."""
    with contextlib.suppress(ConnectionError):
        server.send(LoadingFailed(kind, message))
