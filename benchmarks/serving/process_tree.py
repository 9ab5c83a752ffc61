"""What a server's processes use, each kind by itself: CPU time and memory."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Final

import psutil

__all__ = ["ROLES", "Usage", "usage_by_role", "used_between"]

ROLES: Final = ("front", "host", "lane")
"""`front` takes the calls; without further processes it runs the lanes too. `host` loads models and forks lanes."""
_HOST: Final = "engine-host"


@dataclasses.dataclass(frozen=True)
class Usage:
    """Of all processes of a role.

    Attributes:
        cpu_s: CPU time since they began.
        pss_bytes: memory, what several processes share counted in parts.
    """

    num_processes: int
    cpu_s: float
    pss_bytes: int


def usage_by_role(pid: int) -> dict[str, Usage]:
    """The processes of the server `pid`: itself and what it has started."""
    usages: dict[str, Usage] = {}
    for role, process in _roles(psutil.Process(pid)):
        times = process.cpu_times()
        before = usages.get(role, Usage(0, 0.0, 0))
        usages[role] = Usage(
            before.num_processes + 1,
            before.cpu_s + times.user + times.system,
            before.pss_bytes + process.memory_full_info().pss,
        )
    return usages


def used_between(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> dict[str, float]:
    """CPU seconds that each role used from one look to the next."""
    return {
        role: usage.cpu_s - (before[role].cpu_s if role in before else 0.0) for role, usage in after.items()
    }


def _roles(server: psutil.Process) -> Iterator[tuple[str, psutil.Process]]:
    yield "front", server
    for process in server.children(recursive=True):
        name = process.name()
        role = "lane" if name.startswith("lane-") else "host" if name == _HOST else "front"
        yield role, process
