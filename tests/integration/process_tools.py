"""What a test looks at of processes: which there are, and which files this one has open."""

import contextlib
import os
from collections import Counter
from pathlib import Path

import psutil

__all__ = ["group_of", "is_running", "members", "open_files"]


def members(group: int) -> list[int]:
    """Processes of a group, zombies included."""
    return [each.pid for each in psutil.process_iter() if group_of(each.pid) == group]


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def group_of(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def open_files() -> Counter[str]:
    kinds = (str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return Counter(kind.partition(":")[0] for kind in kinds)
