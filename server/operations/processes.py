"""What each process of the server takes: CPU, memory, open files. Linux; elsewhere there are no such series.

Memory is the proportional set size (PSS, proc_pid_smaps(5)): a page that several processes share counts for each with
its share, so that the sum is what the server takes. Resident sizes would count the weights once for every lane.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

__all__ = ["ProcessesCollector"]

_KILOBYTE = 1024


class ProcessesCollector(Collector):
    """Series of the server's processes, by what each one is: "front-0", "engine-host", "lane-0".

    A process that takes the place of another one has its labels, and counts from zero. Thread-safe.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._processes: dict[str, tuple[int, ProcessCollector]] = {}
        self._lock = threading.Lock()

    def watch(self, pid: int, process: str) -> None:
        """Read what process `pid` takes at every scrape from now on."""
        collector = ProcessCollector(namespace=self._namespace, pid=lambda: pid, registry=None)
        with self._lock:
            self._processes[process] = (pid, collector)

    def retire(self, pid: int) -> None:
        """Another process takes the place of this one while it still runs: `retiring-` goes before its name."""
        with self._lock:
            for process, watched in list(self._processes.items()):
                if watched[0] == pid:
                    self._processes[f"retiring-{process}"] = self._processes.pop(process)

    def forget(self, pid: int) -> None:
        """The process has ended. Harmless when another one has its place."""
        with self._lock:
            self._processes = {
                process: watched for process, watched in self._processes.items() if watched[0] != pid
            }

    def collect(self) -> Iterator[Metric]:
        """One sample of each family for each process that lives."""
        prefix, labels = f"{self._namespace}_process", ["process"]
        cpu = CounterMetricFamily(f"{prefix}_cpu_seconds", "CPU time of each process.", labels=labels)
        memory = GaugeMetricFamily(
            f"{prefix}_pss_bytes", "Memory of each process, shared pages by their share.", labels=labels
        )
        files = GaugeMetricFamily(f"{prefix}_open_fds", "Open files of each process.", labels=labels)
        starts = GaugeMetricFamily(
            f"{prefix}_start_time_seconds", "When each process started, in seconds since 1970.", labels=labels
        )
        families = {family.name: family for family in (cpu, files, starts)}
        with self._lock:
            processes = list(self._processes.items())
        for process, (pid, collector) in processes:
            for found in collector.collect():
                if found.name in families:
                    families[found.name].add_metric([process], found.samples[0].value)
            if (num_bytes := _pss_bytes(pid)) is not None:
                memory.add_metric([process], num_bytes)
        yield from (cpu, memory, files, starts)


def _pss_bytes(pid: int) -> int | None:
    """None where the process has gone, or the kernel does not say it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        name, *value = line.split()
        if name == "Pss:":
            return int(value[0]) * _KILOBYTE
    return None
