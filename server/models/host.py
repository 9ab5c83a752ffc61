"""What the engine's host does with a models folder: load, check, and have each model on all lanes.

It imports nothing that only a front needs: a server's start waits for it.
"""

import contextlib
import functools
import os
from pathlib import Path

import msgspec

from dragoman.common.errors import OperationError
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.joining import UnknownDecoderError
from dragoman.server.engine.lane_loop import ModelFront
from dragoman.server.engine.layout import engine_facts, lane_layout
from dragoman.server.engine.processes.entry import run_host
from dragoman.server.engine.processes.host import Host
from dragoman.server.engine.processes.messages import Begin, ModelLoaded, ModelNotLoaded
from dragoman.server.engine.processes.port import SocketPort
from dragoman.server.engine.worker import LaneWorker, make_lane
from dragoman.server.execution.backend import Backend
from dragoman.server.models.loader import LoadedModel, load_models

__all__ = ["main"]


def main() -> None:
    """Called by `server/engine/processes/__main__.py`."""
    run_host(_load)


def _load(host: Host, begin: Begin) -> int:
    """Load models and have the host tell fronts of them; returns the number of lanes.

    Raises:
        DragomanError: as `load_models`; or what has to be loaded again cannot be.
    """
    settings = EngineSettings.model_validate_json(begin.settings)
    directory = Path(os.fsdecode(begin.directory))
    start = functools.partial(_start, host, settings)
    loading = load_models(directory, settings, start, wanted=begin.versions)
    loaded = {f"{each.bundle.name}/{each.bundle.version}" for each in loading.models}
    if missing := sorted(set(begin.versions or ()) - loaded):
        why = [
            f": {each.description}" for each in loading.not_loaded if f"{each.name}/{each.version}" in missing
        ]
        raise OperationError(f"{missing[0]} was served and cannot be loaded again{''.join(why[:1])}")
    for each in loading.not_loaded:
        host.tell(ModelNotLoaded(each.name, each.version, each.reason, each.description))
    num_lanes, _ = lane_layout(settings)
    return num_lanes


def _start(host: Host, settings: EngineSettings, model: LoadedModel) -> None:
    bundle = model.bundle
    num_lanes, _ = lane_layout(settings)
    # Each lane has a cache of its own. Its memory is there once something is in it.
    backend = model.backend.with_prefix_cache(settings.prefix_cache_bytes // num_lanes)
    with contextlib.suppress(UnknownDecoderError):  # callers are told who ask for what needs it
        _ = backend.vocabulary  # laid out once, for all lanes
    facts = engine_facts(
        bundle.manifest,
        settings,
        kernels=backend.kernels,
        max_prefix_blocks=backend.prefix_cache.max_blocks,
        load_s=model.load_s,
        slowest_run_s=backend.slowest_run_s,
    )
    facts = msgspec.structs.replace(facts, shares_prefix_cache=False)
    told = ModelLoaded(bundle.name, bundle.version, facts)
    manifest = bundle.manifest.model_dump_json().encode()
    start = functools.partial(_make_worker, told.key, backend, settings)
    host.add_model(told, start, manifest, bundle.tokenizer_bytes())


def _make_worker(
    key: str, backend: Backend, settings: EngineSettings, port: SocketPort
) -> LaneWorker[ModelFront[int]]:
    """In the lane's process: the model's rows, and what works with them."""
    return LaneWorker(*make_lane(backend, settings), port.send, model=key)
