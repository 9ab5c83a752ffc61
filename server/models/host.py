"""What the engine's host does with a models folder: load, check, and have each model on all lanes.

It imports nothing that only a front needs: a server's start waits for it.
"""

import functools
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dragoman.common.errors import OperationError
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.engine.lane_loop import ModelFront
from dragoman.server.engine.layout import lane_layout
from dragoman.server.engine.processes.entry import run_host
from dragoman.server.engine.processes.host import Host
from dragoman.server.engine.processes.host_changes import HostModel
from dragoman.server.engine.processes.messages import Begin, Checked, ModelLoaded, ModelNotLoaded
from dragoman.server.engine.processes.port import NO_FRONT, SocketPort
from dragoman.server.engine.warm_up import warm_up, warm_up_input
from dragoman.server.engine.worker import LaneWorker, facts_of, make_lane, prepared
from dragoman.server.errors import BundleError
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.memory_budget import MemoryBudget
from dragoman.server.models.loader import (
    LoadedModel,
    lanes_bytes,
    load_backend,
    load_checked_backend,
    load_models,
    version_folder,
)
from dragoman.server.models.process_memory import LANE_BYTES

__all__ = ["main"]


def main() -> None:
    """Called by `server/engine/processes/__main__.py`."""
    run_host(_load)


def _load(host: Host, begin: Begin) -> tuple[int, "_ModelsFolder"]:
    """Load models and have the host tell fronts of them; returns the number of lanes, and where to load others from.

    Raises:
        DragomanError: as `load_models`; or what has to be loaded again cannot be.
    """
    settings = EngineSettings.model_validate_json(begin.settings)
    directory = Path(os.fsdecode(begin.directory))
    source = _ModelsFolder(directory, settings)
    loading = load_models(
        directory,
        settings,
        lambda model: host.add_model(source.take(model)),
        all_versions=begin.all_versions,
        wanted=begin.versions,
        budget=MemoryBudget(_lane_processes_bytes(settings)),
    )
    loaded = {each.key for each in loading.models}
    if missing := sorted(set(begin.versions or ()) - loaded):
        why = [
            f": {each.description}" for each in loading.not_loaded if f"{each.name}/{each.version}" in missing
        ]
        raise OperationError(f"{missing[0]} was served and cannot be loaded again{''.join(why[:1])}")
    for each in loading.not_loaded:
        host.add_not_loaded(ModelNotLoaded(each.name, each.version, each.reason, each.description))
    num_lanes, _ = lane_layout(settings)
    return num_lanes, source


class _ModelsFolder:
    """A `ModelSource`: versions in a models folder, and the memory that lanes need for those that are loaded."""

    def __init__(self, directory: Path, settings: EngineSettings) -> None:
        self._directory = directory
        self._settings = settings
        self._num_bytes: dict[str, int] = {}  # by key

    def take(self, model: LoadedModel) -> HostModel:
        """A model that was loaded and tried."""
        self._num_bytes[model.key] = lanes_bytes(model.backend, self._settings)
        return _host_model(model.backend, self._settings, model.load_s)

    def check(self, name: str, version: str) -> Checked:
        """As `ModelSource.check`. While lanes take the place of others, the memory of both is needed.

        What those that serve have touched is not available any more, and they touch little more: so there has to be
        memory for all that the new ones may touch.
        """
        started = time.perf_counter()
        bundle = Bundle.read(version_folder(self._directory, name, version))
        budget = MemoryBudget(_lane_processes_bytes(self._settings) + sum(self._num_bytes.values()))
        backend = load_checked_backend(bundle, self._settings, budget)
        return Checked(_digest(bundle), time.perf_counter() - started, backend.slowest_run_s)

    def load(self, name: str, version: str, checked: Checked) -> HostModel:
        """As `ModelSource.load`."""
        bundle = Bundle.read(version_folder(self._directory, name, version))
        if _digest(bundle) != checked.digest:
            raise BundleError(f"{bundle.path} was changed while it was loaded")
        backend = load_backend(bundle, self._settings)
        backend.slowest_run_s = checked.slowest_run_s
        model = _host_model(backend, self._settings, checked.seconds)
        self._num_bytes[f"{name}/{version}"] = lanes_bytes(backend, self._settings)
        return model

    def forget(self, key: str) -> None:
        """As `ModelSource.forget`."""
        self._num_bytes.pop(key, None)


def _lane_processes_bytes(settings: EngineSettings) -> int:
    """What lanes take that are still to be started, beside their rows."""
    num_lanes, _ = lane_layout(settings)
    return num_lanes * LANE_BYTES


def _digest(bundle: Bundle) -> bytes:
    """Of the manifest, which has the digests of all other files."""
    return hashlib.sha256(bundle.manifest.model_dump_json().encode()).digest()


def _host_model(loaded: Backend, settings: EngineSettings, load_s: float) -> HostModel:
    bundle = loaded.bundle
    num_lanes, _ = lane_layout(settings)
    # Each lane has a cache of its own. Its memory is there once something is in it.
    backend = prepared(loaded, settings.prefix_cache_bytes // num_lanes)
    facts = facts_of(backend, settings, load_s=load_s)
    facts = msgspec.structs.replace(facts, shares_prefix_cache=False)
    message = ModelLoaded(bundle.name, bundle.version, facts)
    manifest = bundle.manifest.model_dump_json().encode()
    start = functools.partial(_make_worker, message.key, backend, settings, warm_up_input(bundle))
    return HostModel(message, start, (manifest, bundle.tokenizer_bytes()))


def _make_worker(
    key: str, backend: Backend, settings: EngineSettings, first_input: Sequence[int], port: SocketPort
) -> LaneWorker[ModelFront[int]]:
    """In the lane's process: the model's rows, and what works with them. It has taken its first steps."""
    worker = LaneWorker(*make_lane(backend, settings), port.send, model=key)
    warm_up(worker, (key, NO_FRONT), first_input)
    return worker
