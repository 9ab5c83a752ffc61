"""PyTorch's threads spin while they wait for each other, and sleep while other processes want their cores.

OpenMP splits a product over threads. A thread that is done waits for the others. GNU's runtime, libgomp, which is in
PyTorch's Linux builds, lets it spin for some 3 ms first. That is fast as long as each thread has a core. Where another
process wants one of the cores, the kernel may take it from a thread that computes, and all others spin meanwhile: a
step took up to ten times as long beside one busy process (docs/adr/0019). Threads that sleep at once
(`OMP_WAIT_POLICY=passive`) do not have this problem, but cost a third of the speed on an idle machine.

libgomp's threads also sleep at once when it manages more threads than the process has cores (`do_spin` in
config/linux/wait.h). So while other processes want the cores, this module keeps some idle threads more. The
computation and its number of threads stay the same. Other runtimes of OpenMP do not react to it.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from dragoman.common.cpu import busy_core_seconds

__all__ = ["Contention", "IdleTeams", "considerate_threads"]

_INTERVAL_S: Final = 1.0
_MAX_CONTENTION_CORES: Final = 0.25  # a desktop that idles takes less
_NUM_BUSY_READINGS: Final = 2  # before threads sleep: a command that starts is none that stays
_NUM_QUIET_READINGS: Final = 5  # before they spin again
_GRAIN_ELEMENTS: Final = 32_768  # at::internal::GRAIN_SIZE: no thread of PyTorch's gets fewer elements


class Contention:
    """Finds out from readings of two clocks whether other processes want the cores of this process's threads."""

    def __init__(self, num_threads: int, num_cores: int) -> None:
        """`num_threads` threads of this process compute on `num_cores` cores."""
        self._free_cores = num_cores - num_threads
        self._last: tuple[float, float, float] | None = None
        self._was_busy, self._num_alike = False, 0
        self.is_on = False

    def read(self, now_s: float, busy_s: float, own_s: float) -> bool:
        """Take a reading: the time, and the core seconds that all processes and this one took; returns `is_on`."""
        if self._last is not None:
            then_s, busy_then_s, own_then_s = self._last
            others = ((busy_s - busy_then_s) - (own_s - own_then_s)) / max(now_s - then_s, 1e-9)
            self._count(others - self._free_cores > _MAX_CONTENTION_CORES)
        self._last = now_s, busy_s, own_s
        return self.is_on

    def _count(self, is_busy: bool) -> None:
        """Count equal readings in a row; a few of them decide."""
        self._num_alike = self._num_alike + 1 if is_busy == self._was_busy else 1
        self._was_busy = is_busy
        if self._num_alike >= (_NUM_BUSY_READINGS if is_busy else _NUM_QUIET_READINGS):
            self.is_on = is_busy


class IdleTeams:
    """Enough idle threads of OpenMP that libgomp manages more threads than there are cores. A context manager."""

    def __init__(self, num_threads: int, num_cores: int) -> None:
        """`num_threads` are a team of PyTorch's."""
        self._num_elements = 2 * num_threads * _GRAIN_ELEMENTS
        self._done = threading.Event()
        num_teams = math.ceil(max(1, num_cores + 1 - num_threads) / (num_threads - 1))
        self.started = threading.Semaphore(0)  # released once a team
        self._leaders = [threading.Thread(target=self._hold, daemon=True) for _ in range(num_teams)]

    def __enter__(self) -> None:
        for leader in self._leaders:
            leader.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for leader in self._leaders:
            leader.join()

    def _hold(self) -> None:
        # Each thread that computes has a team of its own, which lasts until the thread ends.
        torch.ones(self._num_elements).add_(1.0)
        self.started.release()
        self._done.wait()


@contextlib.contextmanager
def considerate_threads(num_threads: int) -> Iterator[None]:
    """Have this process's `num_threads` threads sleep, not spin, while other processes want their cores.

    Does nothing for a single thread, where the environment says how threads wait, or where the kernel does not report
    the load of its cores.
    """
    if num_threads < 2 or "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(num_threads, done), name="contention", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(num_threads: int, done: threading.Event, stat: Path = Path("/proc/stat")) -> None:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    contention = Contention(num_threads, len(cores))
    with contextlib.ExitStack() as teams:
        is_crowded = False
        while (busy_s := busy_core_seconds(cores, stat)) is not None:
            own = os.times()
            wants = contention.read(time.monotonic(), busy_s, own.user + own.system)
            if wants and not is_crowded:
                teams.enter_context(IdleTeams(num_threads, len(cores)))
            elif is_crowded and not wants:
                teams.close()
            is_crowded = wants
            if done.wait(_INTERVAL_S):
                return
