"""The processes of a server: which there are, what memory they take, which files they have open."""

from pathlib import Path

import psutil

__all__ = ["KINDS", "Tree", "shared_memory"]

KINDS = ("server", "front", "host", "lane")
"""`front` is a further front: the server process is the first one."""


OTHER_PROGRAMS = ("faketime", "envoy")
"""They run in `faults` and `cluster`, or on the machine meanwhile."""


class Tree:
    """The processes of a server, by what they are."""

    def __init__(self, server: int) -> None:
        self.server = psutil.Process(server)

    def by_kind(self) -> dict[str, list[psutil.Process]]:
        """All that live now."""
        while True:
            try:
                return self._by_kind()
            except psutil.Error:  # one has gone meanwhile
                if not self.server.is_running():
                    return {kind: [] for kind in KINDS}

    def _by_kind(self) -> dict[str, list[psutil.Process]]:
        kinds: dict[str, list[psutil.Process]] = {kind: [] for kind in KINDS}
        if self.server.status() != psutil.STATUS_ZOMBIE:
            kinds["server"].append(self.server)
        for child in self.server.children():
            if child.status() == psutil.STATUS_ZOMBIE:
                continue
            if child.name() == "engine-host":
                kinds["host"].append(child)
                kinds["lane"] += [each for each in child.children() if each.name().startswith("lane-")]
            else:
                kinds["front"].append(child)
        return kinds

    def all(self) -> list[psutil.Process]:
        """The server process and all that it has started."""
        return [self.server, *self.server.children(recursive=True)]

    def counts(self) -> dict[str, int]:
        """Number of processes of each kind."""
        return {kind: len(each) for kind, each in self.by_kind().items()}

    def pids(self) -> set[int]:
        """Of all processes."""
        return {each.pid for each in self.all()}

    def num_zombies(self) -> int:
        """Processes that have ended and that nobody has waited for."""
        return sum(each.status() == psutil.STATUS_ZOMBIE for each in self.all())

    def memory_bytes(self) -> int:
        """Memory of all processes together, as `own_bytes` counts it."""
        return sum(own_bytes(each.pid) for each in self.all())

    def memory_by_kind(self) -> dict[str, int]:
        """The same by kind of process."""
        return {
            kind: sum(own_bytes(each.pid) for each in processes) for kind, processes in self.by_kind().items()
        }

    def num_files(self) -> int:
        """Open file descriptors of all processes together."""
        return sum(each.num_fds() for each in self.all())

    def num_threads(self) -> int:
        """Threads of all processes together."""
        return sum(each.num_threads() for each in self.all())


def own_bytes(pid: int) -> int:
    """A process's share of memory that belongs to no file, proc(5); 0 where the process has gone.

    Pages of libraries are left out: the share of each process in them changes with other programs that map them.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    sizes = {name: int(size) * 1024 for name, size, *_ in map(str.split, lines[1:])}
    return sizes["Pss_Anon:"] + sizes["Pss_Shmem:"]


def shared_memory() -> set[str]:
    """Names of what lies in the machine's shared memory, without what other programs have put there."""
    names = {path.name for path in Path("/dev/shm").glob("*")}
    return {name for name in names if not any(program in name for program in OTHER_PROGRAMS)}
