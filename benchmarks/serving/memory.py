"""Resident memory of a system in a fresh process, which holds its imports, its model and its work, and no more."""

import dataclasses
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import psutil
from benchmarks.serving.peers import PeerWorker
from benchmarks.serving.systems import Reading, Setting, Workload

from dragoman.server.bundle.manifest import Manifest
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.engine.layout import lane_layout
from dragoman.server.execution.host_memory import HostMemory

__all__ = ["DragomanProcess", "Hosted", "Memory", "arena_bytes", "measure_memory"]

_ROOT: Final = Path(__file__).parents[2]
_SCRIPT: Final = Path(__file__).with_name("dragoman_worker.py")
_TURN_S: Final = 0.3  # a workload of a few milliseconds is decoded often enough to be seen
_INTERVAL_S: Final = 0.005


@dataclasses.dataclass(frozen=True)
class Memory:
    """Resident memory beyond that of a process which has imported everything and loaded nothing.

    Attributes:
        loaded_bytes: with the model loaded and ready, before the first input.
        peak_bytes: the most that was seen while decoding.
    """

    loaded_bytes: int
    peak_bytes: int


class Hosted(Protocol):
    """A system in a process of its own."""

    @property
    def worker(self) -> PeerWorker:
        """The process."""

    def prepare(self, setting: Setting) -> None:
        """Load the model."""

    def run(self, workload: Workload, turn_s: float) -> Reading:
        """Decode the workload again and again for at least `turn_s` seconds."""


class DragomanProcess:
    """The engine that `DragomanEngine` is, in a process of its own."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        paths = [
            str(_ROOT),
            *filter(None, [os.environ.get("PYTHONPATH")]),
        ]  # where the folder `benchmarks` is
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self.worker = PeerWorker(Path(sys.executable), _SCRIPT, environment)

    def prepare(self, setting: Setting) -> None:
        manifest = self._bundle.manifest.model_dump(mode="json")
        self.worker.ask("load", folder=str(self._bundle.path), manifest=manifest, setting=dict(setting))

    def run(self, workload: Workload, turn_s: float) -> Reading:
        answer = self.worker.ask("decode", workload=dataclasses.asdict(workload), turn_s=turn_s)
        return Reading(**answer)

    def close(self) -> None:
        self.worker.close()


def arena_bytes(manifest: Manifest, setting: Setting) -> int:
    """What an engine's lanes reserve for keys and values, whether or not their rows are used."""
    num_lanes, _ = lane_layout(EngineSettings())
    memory = HostMemory(manifest, int(setting["slots_per_lane"]), np.dtype(np.float32))
    return num_lanes * sum(cache.nbytes for cache in memory.caches.values())


def measure_memory(system: Hosted, setting: Setting, workload: Workload) -> Memory:
    """Load and decode in `system`, which has done nothing yet.

    Raises:
        RuntimeError: the process failed.
    """
    system.worker.ask("ready")
    process = psutil.Process(system.worker.pid)
    empty_bytes = process.memory_info().rss
    system.prepare(setting)
    loaded_bytes = peak_bytes = process.memory_info().rss
    with ThreadPoolExecutor(max_workers=1) as executor:
        decoding = executor.submit(system.run, workload, _TURN_S)
        while wait([decoding], timeout=_INTERVAL_S).not_done:
            peak_bytes = max(peak_bytes, process.memory_info().rss)
    decoding.result()
    return Memory(loaded_bytes - empty_bytes, peak_bytes - empty_bytes)
