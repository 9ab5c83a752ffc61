"""Dragoman's engine as a process that answers requests in lines of JSON, as the peers' do: for its memory alone.

Runs in this environment, without torch. Requests, by their `request`:

    load      folder and manifest of a bundle, setting of `DragomanEngine`
    decode    workload, turn_s: decode it again and again for at least so long
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.json_worker import answer_requests
from benchmarks.serving.dragoman_systems import DragomanEngine
from benchmarks.serving.systems import Setting, Workload

from dragoman.server.bundle.manifest import Manifest
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.models.loader import load_backend


class Worker:
    """Answers requests; holds one engine."""

    def __init__(self) -> None:
        self.engine: DragomanEngine | None = None

    def load(self, folder: str, manifest: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
        bundle = Bundle(Path(folder), Manifest.model_validate(manifest))
        self.engine = DragomanEngine(load_backend(bundle, EngineSettings()))
        self.engine.prepare(setting)
        return {}

    def decode(self, workload: Mapping[str, Any], turn_s: float) -> dict[str, Any]:
        assert self.engine is not None
        reading = self.engine.run(Workload(**workload), turn_s)
        return {"seconds": reading.seconds, "num_tokens": reading.num_tokens}


if __name__ == "__main__":
    answer_requests(Worker())
