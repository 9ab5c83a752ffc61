"""How many cores this process may use: the cgroup's quota and the affinity mask, never the host's count.

Under a CPU limit, threads sized from the host's cores are throttled by the kernel and run tens of times
slower (microsoft/onnxruntime#29510).

Sources: cgroup v2 `cpu.max` (kernel documentation, admin-guide/cgroup-v2), cgroup v1
`cpu.cfs_quota_us` / `cpu.cfs_period_us` (kernel documentation, scheduler/sched-bwc); /proc/stat (proc_stat(5)).
"""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from dragoman.common.cgroups import group_and_ancestors, memberships, read_text

__all__ = ["busy_core_seconds", "cpu_limit_cores", "throttled_seconds", "throttling_files", "usable_cores"]

_V1_CONTROLLER_FOLDERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def cpu_limit_cores(root: Path = Path("/")) -> float:
    """Cores' worth of time this process may use, fractions included.

    Args:
        root: where /proc and /sys are looked for; tests hand in a folder of their own.
    """
    return min([float(_affinity_cores()), *_quotas(root)])


def usable_cores(root: Path = Path("/")) -> int:
    """Threads that can run at once without being throttled: the limit rounded down, at least 1."""
    return max(1, int(cpu_limit_cores(root)))


def throttling_files(root: Path = Path("/")) -> list[Path]:
    """Where the kernel says for each cgroup of this process how long it had no core because a quota was used up."""
    files = [folder / "cpu.stat" for folder, _ in _groups(root)]
    return [path for path in files if _throttled(path) is not None]


def throttled_seconds(files: Iterable[Path]) -> float:
    """The longest time that one of these files says: the kernel counts where the quota is. 0: none says it."""
    return max((_throttled(path) or 0.0 for path in files), default=0.0)


def busy_core_seconds(cores: Collection[int], stat: Path = Path("/proc/stat")) -> float | None:
    """Seconds that the `cores` of these numbers have worked since the machine's start, for whichever process.

    None where the kernel does not say it: there is no /proc/stat, or none of `cores` is in it.
    """
    ticks = 0
    num_found = 0
    for line in read_text(stat).splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq = map(int, values[:7])
            ticks += user + nice + system + irq + softirq
            num_found += 1
    return ticks / os.sysconf("SC_CLK_TCK") if num_found else None


def _affinity_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity mask


def _quotas(root: Path) -> Iterator[float]:
    """The quota of each cgroup this process is in, ancestors included: the tightest one binds."""
    for folder, is_v2 in _groups(root):
        yield from _read_v2(folder / "cpu.max") if is_v2 else _read_v1(folder)


def _groups(root: Path) -> Iterator[tuple[Path, bool]]:
    """The folder of each cgroup this process is in that may limit its time, and whether that is in v2's hierarchy."""
    mounts = root / "sys/fs/cgroup"
    for controllers, group in memberships(root / "proc/self/cgroup"):
        if controllers == "":  # the one hierarchy of v2
            for folder in group_and_ancestors(mounts, group):
                yield folder, True
        elif "cpu" in controllers.split(","):
            for mount in _V1_CONTROLLER_FOLDERS:
                for folder in group_and_ancestors(mounts / mount, group):
                    yield folder, False


def _throttled(path: Path) -> float | None:
    """`throttled_usec` of v2, `throttled_time` in nanoseconds of v1; None where the file says neither."""
    for line in read_text(path).splitlines():
        match line.split():
            case ["throttled_usec", count] if count.isdecimal():
                return int(count) / 1e6
            case ["throttled_time", count] if count.isdecimal():
                return int(count) / 1e9
    return None


def _read_v2(path: Path) -> Iterator[float]:
    """`cpu.max` holds "<quota> <period>" in microseconds, or "max <period>" for no limit."""
    match read_text(path).split():
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            yield int(quota) / int(period)


def _read_v1(folder: Path) -> Iterator[float]:
    """A quota of -1 is no limit."""
    quota = read_text(folder / "cpu.cfs_quota_us").strip()
    period = read_text(folder / "cpu.cfs_period_us").strip()
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        yield int(quota) / int(period)
