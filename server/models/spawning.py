"""The engine's host, started before anything else: it imports while the server process does."""

import contextlib
import sys

from dragoman.common.cpu import usable_cores
from dragoman.server.engine.processes.spawn import SpawnedHost, spawn

__all__ = ["HOST_MODULE", "spawn_early"]

HOST_MODULE = "dragoman.server.models.host"


def spawn_early() -> SpawnedHost | None:
    """A host where there will be one unless the settings say otherwise (`run_in_processes`); from the main thread."""
    if sys.platform == "linux" and usable_cores() > 1:
        with contextlib.suppress(OSError):  # tried again, and told, once it is known to be needed
            return spawn(HOST_MODULE)
    return None
