"""How much memory this process may still take: the machine's, the cgroup's, the process's own limit.

Sources: /proc/meminfo `MemAvailable` (proc(5)), cgroup v2 `memory.max` (admin-guide/cgroup-v2), cgroup v1
`memory.limit_in_bytes` (cgroup-v1/memory), RLIMIT_AS (getrlimit(2)), /proc/PID/smaps_rollup (proc(5)).
"""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dragoman.common.cgroups import group_and_ancestors, memberships, read_text

__all__ = [
    "AvailableMemory",
    "available_memory",
    "memory_limit_bytes",
    "proportional_bytes",
    "readable_bytes",
]

_FILE_CACHE = ("inactive_file", "active_file")
"""Counted as used by a group; the kernel drops them when the group needs memory."""


class _Names(NamedTuple):
    """Files of a cgroup, and what its lines of sums over its children begin with."""

    limit: str
    usage: str
    prefix: str


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_V2 = _Names("memory.max", "memory.current", "")


class AvailableMemory(NamedTuple):
    """Bytes that can be taken, and what limits them, in words."""

    num_bytes: int
    limit: str


def available_memory(root: Path = Path("/")) -> AvailableMemory | None:
    """The tightest of all limits; None where the system names none.

    Args:
        root: where /proc and /sys are looked for; tests hand in a folder of their own.
    """
    return min(_limits(root), default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """What this process and those beside it in its cgroup may take at most; None where the system names no limit.

    The tightest of the cgroup's limits, or else the machine's memory.
    """
    limits = [_table(root / "proc/meminfo").get("MemTotal", 0) * 1024]
    texts = [read_text(folder / names.limit).strip() for folder, names in _groups(root)]
    limits += [int(text) for text in texts if text.isdecimal()]  # v2 says "max" where there is no limit
    return min(filter(None, limits), default=None)


def proportional_bytes(pid: int, root: Path = Path("/")) -> int:
    """A process's share of memory (PSS): a page that n processes have counts as an nth; 0 where that cannot be read.

    Sums over processes are right, which sums of resident memory are not.
    """
    return _table(root / f"proc/{pid}/smaps_rollup").get("Pss", 0) * 1024


def readable_bytes(num_bytes: int) -> str:
    """A size in MiB or GiB, for a message."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def _limits(root: Path) -> Iterator[AvailableMemory]:
    available = _table(root / "proc/meminfo").get("MemAvailable")
    if available is not None:
        yield AvailableMemory(available * 1024, "MemAvailable")
    for folder, names in _groups(root):
        yield from _limit_of(folder, *names)
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = read_text(root / "proc/self/statm").split()
    if most != resource.RLIM_INFINITY and pages:
        yield AvailableMemory(max(0, most - int(pages[0]) * resource.getpagesize()), "RLIMIT_AS")


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The folder of each cgroup that limits this process's memory, and what its files are called there."""
    mounts = root / "sys/fs/cgroup"
    for controllers, group in memberships(root / "proc/self/cgroup"):
        if controllers == "":  # the one hierarchy of v2
            for folder in group_and_ancestors(mounts, group):
                yield folder, _V2
        elif "memory" in controllers.split(","):
            for folder in group_and_ancestors(mounts / "memory", group):
                yield folder, _V1


def _limit_of(folder: Path, limit: str, usage: str, prefix: str) -> Iterator[AvailableMemory]:
    most, used = read_text(folder / limit).strip(), read_text(folder / usage).strip()
    if most.isdecimal() and used.isdecimal():  # v2 says "max" where there is no limit
        statistics = _table(folder / "memory.stat")
        taken = int(used) - sum(statistics.get(prefix + name, 0) for name in _FILE_CACHE)
        yield AvailableMemory(max(0, int(most) - max(0, taken)), f"{limit} of the cgroup")


def _table(path: Path) -> dict[str, int]:
    """Lines of a name, perhaps a colon, and a number."""
    words = (line.replace(":", " ").split() for line in read_text(path).splitlines())
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}
