"""How many lanes an engine has, and what each of them has."""

import sys

from dragoman.common.cpu import usable_cores
from dragoman.common.errors import UsageError
from dragoman.server.bundle.manifest import Manifest
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.cost import max_step_cost
from dragoman.server.engine.api import EngineFacts

__all__ = ["engine_facts", "lane_layout", "num_reserved_rows", "run_in_processes"]

_ROWS_A_RESERVED_ONE = 6
"""Beside so many rows a lane has one more, which a call with many leaves to others: with 32 a search of five beams."""


def lane_layout(settings: EngineSettings) -> tuple[int, int]:
    """Number of lanes and of threads in each, from the cores this process may use.

    One lane of one thread per core: lanes share no barrier, and a small model's products gain nothing from a
    second thread. An accelerator has one lane, whose thread computes nothing: two would take turns at it.
    """
    num_cores = usable_cores()
    on_device = settings.provider != "cpu"
    num_lanes = (1 if on_device else num_cores) if settings.lanes == "auto" else settings.lanes
    num_threads = 1 if on_device else max(1, num_cores // num_lanes)
    return num_lanes, num_threads if settings.threads_per_lane == "auto" else settings.threads_per_lane


def run_in_processes(settings: EngineSettings) -> bool:
    """Whether each lane is a process (docs/adr/0021-lanes-in-processes.md).

    Raises:
        UsageError: processes are asked for where there can be none.
    """
    if settings.lanes_run_in == "threads":
        return False
    _, num_threads = lane_layout(settings)
    # A process is copied with one of its threads only, and without what it has on a device.
    obstacles = {
        "it needs Linux": sys.platform != "linux",
        f"it needs engine.provider = 'cpu', not {settings.provider!r}": settings.provider != "cpu",
        f"it needs engine.threads_per_lane = 1, not {num_threads}": num_threads != 1,
    }
    obstacle = next((name for name, is_there in obstacles.items() if is_there), None)
    if settings.lanes_run_in == "auto":
        return obstacle is None and usable_cores() > 1
    if obstacle is not None:
        raise UsageError(f"engine.lanes_run_in = 'processes': {obstacle}")
    return True


def num_reserved_rows(settings: EngineSettings) -> int:
    """Rows of a lane beside its slots."""
    return settings.slots_per_lane // _ROWS_A_RESERVED_ONE


def engine_facts(
    manifest: Manifest,
    settings: EngineSettings,
    *,
    kernels: str,
    max_prefix_blocks: int,
    load_s: float = 0.0,
    slowest_run_s: float = 0.0,
) -> EngineFacts:
    """What a front is told of the lanes that such settings give a bundle."""
    num_lanes, num_threads = lane_layout(settings)
    dimensions = manifest.dimensions
    num_sharing = 1 if run_in_processes(settings) else num_lanes
    return EngineFacts(
        provider=settings.provider,
        kernels=kernels,
        num_lanes=num_lanes,
        threads_per_lane=num_threads,
        slots_per_lane=settings.slots_per_lane,
        reserved_rows=num_reserved_rows(settings),
        max_step_cost=max_step_cost(dimensions.num_parameters, settings.slots_per_lane, num_sharing),
        vocabulary_size=dimensions.vocabulary_size,
        max_prefix_blocks=max_prefix_blocks,
        load_s=load_s,
        slowest_run_s=slowest_run_s,
    )
