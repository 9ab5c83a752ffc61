"""What each process of the server takes: CPU, memory, open files. Linux; elsewhere there are no such series.

Memory is the proportional set size (PSS, proc_pid_smaps(5)): a page that several processes share counts for each with
its share, so that the sum is what the server takes. Resident sizes would count the weights once for every lane.

Whenever a scrape's thread asks the kernel for something, the event loop may have the interpreter, and under load has it
for milliseconds. So it asks as seldom as it can: `prometheus_client.ProcessCollector` asks once for each open file, and
often for each file that it reads.

The kernel takes milliseconds for the memory of one process, as it looks at every page: more than all else of a scrape.
So memory is measured behind a scrape, for the next one.
"""

import functools
import math
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dragoman.common.cgroups import read_text

__all__ = ["MAX_MEMORY_AGE_S", "OwnProcessCollector", "ProcessesCollector"]

MAX_MEMORY_AGE_S = 60.0
"""A scrape that finds nothing younger measures memory itself."""

_KILOBYTE = 1024
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_MOST_BYTES = 4096
"""Of a file's text: more than any of them has."""
_USER_TICKS, _SYSTEM_TICKS, _START_TICKS, _VIRTUAL_BYTES, _RESIDENT_PAGES = 11, 12, 19, 20, 21
"""Places behind the process's name in proc_pid_stat(5)."""


class ProcessesCollector(Collector):
    """Series of the server's processes, by what each one is: "front-0", "engine-host", "lane-0".

    A process that takes the place of another one has its labels, and counts from zero. Thread-safe.
    """

    def __init__(self, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._namespace = namespace
        self._clock = clock
        self._processes: dict[str, _Process] = {}
        self._lock = threading.Lock()
        self._measuring: threading.Thread | None = None

    def watch(self, pid: int, process: str) -> None:
        """Read what process `pid` takes at every scrape from now on."""
        with self._lock:
            self._processes[process] = _Process(pid)

    def retire(self, pid: int) -> None:
        """Another process takes the place of this one while it still runs: `retiring-` goes before its name."""
        with self._lock:
            for process, watched in list(self._processes.items()):
                if watched.pid == pid:
                    self._processes[f"retiring-{process}"] = self._processes.pop(process)

    def forget(self, pid: int) -> None:
        """The process has ended. Harmless when another one has its place."""
        with self._lock:
            self._processes = {
                process: watched for process, watched in self._processes.items() if watched.pid != pid
            }

    def collect(self) -> Iterator[Metric]:
        """One sample of each family for each process that lives."""
        prefix, labels = f"{self._namespace}_process", ["process"]
        cpu = CounterMetricFamily(f"{prefix}_cpu_seconds", "CPU time of each process.", labels=labels)
        memory = GaugeMetricFamily(
            f"{prefix}_pss_bytes",
            "Memory of each process, shared pages by their share; measured after the scrape before this one.",
            labels=labels,
        )
        files = GaugeMetricFamily(f"{prefix}_open_fds", "Open files of each process.", labels=labels)
        starts = GaugeMetricFamily(
            f"{prefix}_start_time_seconds", "When each process started, in seconds since 1970.", labels=labels
        )
        with self._lock:
            processes = list(self._processes.items())
        for process, watched in processes:
            if (status := watched.status()) is None:  # it has ended
                continue
            cpu.add_metric([process], status.cpu_s)
            starts.add_metric([process], status.start_s)
            if (num_files := watched.num_open_files()) is not None:
                files.add_metric([process], num_files)
            if (num_bytes := watched.lately_pss_bytes(self._clock)) is not None:
                memory.add_metric([process], num_bytes)
        yield from (cpu, memory, files, starts)
        self._measure_for_the_next()

    def _measure_for_the_next(self) -> None:
        """Have a thread of its own measure memory, unless one does."""
        with self._lock:
            if self._measuring is not None and self._measuring.is_alive():
                return
            processes = list(self._processes.values())
            self._measuring = threading.Thread(
                target=self._measure, args=(processes,), name="memory", daemon=True
            )
            self._measuring.start()

    def _measure(self, processes: "list[_Process]") -> None:
        for process in processes:
            process.measure(self._clock)


class OwnProcessCollector(Collector):
    """The series `process_*` of this process, as every Prometheus client has them."""

    def __init__(self) -> None:
        self._process = _Process(os.getpid())

    def collect(self) -> Iterator[Metric]:
        """One sample of each family."""
        status = self._process.status()
        if status is None:
            return
        yield CounterMetricFamily("process_cpu_seconds", "CPU time of the server process.", status.cpu_s)
        sizes = {
            "virtual_memory_bytes": ("Address space of the server process.", status.virtual_bytes),
            "resident_memory_bytes": (
                "Memory of the server process, shared pages whole.",
                status.resident_bytes,
            ),
            "start_time_seconds": ("When the server process started, in seconds since 1970.", status.start_s),
            "max_fds": (
                "Files that the server process may open.",
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            ),
        }
        if (num_files := self._process.num_open_files()) is not None:
            sizes["open_fds"] = ("Open files of the server process.", num_files)
        for name, (help_text, size) in sizes.items():
            yield GaugeMetricFamily(f"process_{name}", help_text, size)


class _Status(NamedTuple):
    """What proc_pid_stat(5) says: seconds of CPU, the start in seconds since 1970, bytes."""

    cpu_s: float
    start_s: float
    virtual_bytes: int
    resident_bytes: int


class _Process:
    """A process, by its files in /proc. What has gone, or the kernel does not say, is None."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._folder = f"/proc/{pid}"
        self._measured: tuple[float, int | None] = (-math.inf, None)

    def status(self) -> _Status | None:
        """CPU time, start and memory."""
        # The name, in parentheses, may have anything in it.
        words = _read(f"{self._folder}/stat").rpartition(b")")[2].split()
        if not words:
            return None
        return _Status(
            (int(words[_USER_TICKS]) + int(words[_SYSTEM_TICKS])) / _TICKS_A_SECOND,
            _boot_time_s() + int(words[_START_TICKS]) / _TICKS_A_SECOND,
            int(words[_VIRTUAL_BYTES]),
            int(words[_RESIDENT_PAGES]) * resource.getpagesize(),
        )

    def num_open_files(self) -> int | None:
        """Of Linux 6.2 and later the size of the folder of open files; before that they are listed."""
        folder = Path(f"{self._folder}/fd")
        try:
            return folder.stat().st_size or sum(1 for _ in folder.iterdir())
        except OSError:
            return None

    def lately_pss_bytes(self, clock: Callable[[], float]) -> int | None:
        """Its share of memory as it was measured last; as it is now, where that is too long ago."""
        if self._measured[0] < clock() - MAX_MEMORY_AGE_S:
            self.measure(clock)
        return self._measured[1]

    def measure(self, clock: Callable[[], float]) -> None:
        """Measure its share of memory."""
        _, found, rest = _read(f"{self._folder}/smaps_rollup").partition(b"\nPss:")
        self._measured = (clock(), int(rest.split()[0]) * _KILOBYTE if found else None)


def _read(path: str) -> bytes:
    """What a file of the kernel says; nothing where there is no such file, or its process has ended."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MOST_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


@functools.cache
def _boot_time_s() -> float:
    for line in read_text(Path("/proc/stat")).splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0
