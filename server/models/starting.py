"""The first step of a server whose lanes are processes: what the settings say goes to the host."""

import os

from dragoman.server.config import ServerSettings
from dragoman.server.engine.layout import run_in_processes
from dragoman.server.engine.processes.messages import Begin
from dragoman.server.engine.processes.spawn import SpawnedHost
from dragoman.server.engine.processes.supervisor import Supervisor
from dragoman.server.models.spawning import HOST_MODULE

__all__ = ["start_host"]


def start_host(settings: ServerSettings, spawned: SpawnedHost | None = None) -> Supervisor | None:
    """Have the models loaded by another process, if lanes are processes; returns at once. From the main thread.

    Args:
        settings: of the server.
        spawned: that process if it has been started; it is ended where it is not needed.

    Raises:
        UsageError: processes are asked for where there can be none.
        OperationError: the system refuses another process.
    """
    if not run_in_processes(settings.engine):
        if spawned is not None:
            spawned.abandon()
        return None
    directory = os.fsencode(settings.models.directory)
    begin = Begin(
        directory,
        settings.engine.model_dump_json().encode(),
        all_versions=settings.models.versions == "all",
        drain_limit_s=settings.server.drain_timeout_s,
    )
    return Supervisor(begin, HOST_MODULE, spawned)
