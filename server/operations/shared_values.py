"""Counts of one process in memory that its parent reads: they outlive the process, and leave no file.

prometheus_client's own mode for several processes needs a folder of files. It knows no series that are read at a
scrape, and files of dead processes stay until someone removes them. Here its file format (`MmapedDict`) lies in memory
without a name (memfd_create(2)), one piece a process. What a process counts is there at once: a process that is killed
loses nothing. Series that are read when they are asked for are written a few times a second (`publish`).

Linux only, as several front processes are.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.samples import Sample

__all__ = ["HEARTBEAT", "ValueMemory", "ValueWriter", "counting_in", "own_counts"]

HEARTBEAT = "heartbeat"
"""Key of the moment of the last `publish`, on `time.monotonic()`."""


class ValueMemory:
    """The memory of one process's values, as the parent has it.

    Attributes:
        fd: to be handed to the process.
    """

    def __init__(self, name: str) -> None:
        self.fd = os.memfd_create(name)

    def read(self) -> dict[str, float]:
        """All values that are there now, by the keys of `mmap_key`."""
        if os.fstat(self.fd).st_size == 0:  # the process has not come so far
            return {}
        entries = MmapedDict.read_all_values_from_file(_path(self.fd))  # type: ignore[no-untyped-call]
        return {key: value for key, value, _, _ in entries}

    def close(self) -> None:
        """Give the memory back, once no process writes into it. Harmless when it is closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ValueWriter:
    """Writes values into the memory behind `fd`; safe to call from any thread."""

    def __init__(self, fd: int) -> None:
        self._values: Any = MmapedDict(_path(fd))  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def read(self, key: str) -> float:
        """The value under `key`, which is there from now on."""
        with self._lock:
            return float(self._values.read_value(key)[0])

    def write(self, key: str, value: float) -> None:
        """Set the value under `key`."""
        with self._lock:
            self._values.write_value(key, value, 0.0)

    def publish(self, families: Iterable[Metric]) -> None:
        """Write the samples of series that are read when they are asked for, and the moment."""
        for family in families:
            for sample in own_counts(family):
                labels, label_values = list(sample.labels), list(sample.labels.values())
                self.write(mmap_key(family.name, sample.name, labels, label_values, ""), sample.value)
        self.write(HEARTBEAT, time.monotonic())

    def close(self) -> None:
        """Write nothing more."""
        with self._lock:
            self._values.close()


def own_counts(family: Metric) -> Iterator[Sample]:
    """The samples of a family, each histogram bucket without those below it, and without what follows from others."""
    if family.type != "histogram":
        yield from family.samples
        return
    below = 0.0
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            yield sample._replace(value=sample.value - below)
            below = 0.0 if sample.labels["le"] == "+Inf" else sample.value
        elif sample.name.endswith("_sum"):
            yield sample


@contextlib.contextmanager
def counting_in(writer: ValueWriter) -> Iterator[None]:
    """Keep the values of all metrics that are made meanwhile with `writer`. A metric of new label values is a new one.

    It costs a count 0.3 us more than the process's own memory.
    """
    before = values.ValueClass
    # prometheus_client chooses this class once, by an environment variable. Its issue 886 asks for a way like this.
    values.ValueClass = _value_class(writer)
    try:
        yield
    finally:
        values.ValueClass = before


def _value_class(writer: ValueWriter) -> Any:
    class SharedValue:
        """A value with the methods that prometheus_client calls of `MutexValue`."""

        _multiprocess = False

        def __init__(self, _typ: str, metric_name: str, *sample: Any, **_: Any) -> None:
            name, labelnames, labelvalues, _help = sample
            self._key = mmap_key(metric_name, name, labelnames, labelvalues, "")
            self._value = writer.read(self._key)
            self._lock = threading.Lock()

        def inc(self, amount: float) -> None:
            with self._lock:
                self._value += amount
                writer.write(self._key, self._value)

        def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002
            with self._lock:
                self._value = value
                writer.write(self._key, value)

        def get(self) -> float:
            return self._value

        def set_exemplar(self, exemplar: object) -> None:
            """The page has those of the process that is scraped: here they are not kept."""

        def get_exemplar(self) -> None:
            return None

    return SharedValue


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
