"""The engine's host, started before anything else: it imports while the server process does."""

import contextlib
import sys
from collections.abc import Iterator

from dragoman.common.cpu import usable_cores
from dragoman.server.engine.processes.spawn import SpawnedHost, spawn

__all__ = ["HOST_MODULE", "early_host"]

HOST_MODULE = "dragoman.server.models.host"


@contextlib.contextmanager
def early_host() -> Iterator[SpawnedHost | None]:
    """A host where there will be one unless the settings say otherwise (`run_in_processes`); from the main thread.

    It is ended where the block fails; else it is whoever has it that ends it.
    """
    spawned = None
    if sys.platform == "linux" and usable_cores() > 1:
        with contextlib.suppress(OSError):  # tried again, and told, once it is known to be needed
            spawned = spawn(HOST_MODULE)
    try:
        yield spawned
    except BaseException:
        if spawned is not None:
            spawned.abandon()
        raise
