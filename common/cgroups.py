"""Which cgroups this process is in, for the limits that they set: v1 and v2 (kernel documentation, cgroup-v2)."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["group_and_ancestors", "memberships", "read_text"]


def memberships(path: Path) -> Iterator[tuple[str, str]]:
    """Lines of /proc/self/cgroup, `hierarchy:controllers:path`, as (controllers, path)."""
    for line in read_text(path).splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, group = rest.partition(":")
        if colon:
            yield controllers, group


def group_and_ancestors(mount: Path, group: str) -> Iterator[Path]:
    """The folder of a group below its hierarchy's mount, then those above it; the tightest limit binds."""
    # In a container without its own cgroup namespace `group` is the host's path while the mount shows only
    # the container's part: folders that are not there are passed by, and the mount itself is the container's.
    parts = [part for part in PurePosixPath(group).parts if part not in ("/", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def read_text(path: Path) -> str:
    """What a file of the kernel says; nothing where there is no such file."""
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # no such hierarchy here: nothing limits us through it
        return ""
