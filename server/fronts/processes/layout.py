"""How many fronts a server has, and what of its limits each of them has."""

import math

from dragoman.common.cpu import usable_cores
from dragoman.common.errors import UsageError
from dragoman.server.config import ServerSettings, is_unix

__all__ = ["num_fronts", "share"]

CORES_A_FRONT = 4
"""A call took a front 0.43 to 0.67 ms of CPU on two saturated cores, and the lanes of a small model about 0.75: one
front keeps up with two to three cores of lanes (docs/adr/0023-several-fronts.md)."""


def num_fronts(settings: ServerSettings, *, lanes_are_processes: bool) -> int:
    """Processes that answer calls, from the cores that this server may use.

    Raises:
        UsageError: more than one is asked for, and lanes are threads of this process.
    """
    requested = settings.server.fronts
    if isinstance(requested, int):
        if requested > 1 and not lanes_are_processes:
            raise UsageError(f"server.fronts = {requested}: it needs engine.lanes_run_in = 'processes'")
        return requested
    if not lanes_are_processes or is_unix(settings.server.host):
        return 1
    return math.ceil(usable_cores() / CORES_A_FRONT)


def share(settings: ServerSettings, num_fronts: int) -> ServerSettings:
    """The settings of one of `num_fronts` fronts: what it may have of calls, connections and spans, and of what waits.

    One call always fits.
    """
    listen, engine = settings.server, settings.engine
    max_calls = math.ceil(listen.max_concurrent_calls / num_fronts)
    max_connections = math.ceil(listen.max_connections / num_fronts)
    max_waiting = max(listen.max_inputs, math.ceil(engine.max_waiting / num_fronts))
    max_waiting_tokens = math.ceil(engine.max_waiting_tokens / num_fronts)
    max_asked_spans = settings.tracing.max_asked_spans_a_second / num_fronts
    return settings.model_copy(
        update={
            "server": listen.model_copy(
                update={"max_concurrent_calls": max_calls, "max_connections": max_connections}
            ),
            "engine": engine.model_copy(
                update={"max_waiting": max_waiting, "max_waiting_tokens": max_waiting_tokens}
            ),
            "tracing": settings.tracing.model_copy(update={"max_asked_spans_a_second": max_asked_spans}),
        }
    )
