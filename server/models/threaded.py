"""Models of this process, whose lanes are its threads."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dragoman.server.config import EngineSettings
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.models.discovery import NotLoaded
from dragoman.server.models.loader import LoadedModel, load_model, load_models
from dragoman.server.models.registry import Registry, announce_not_loaded
from dragoman.server.models.served_model import ServedModel, announce
from dragoman.server.operations.metrics import Metrics

__all__ = ["ThreadedModels"]


@dataclass(frozen=True, slots=True)
class _Running:
    loaded: LoadedModel
    lanes: LaneThreads


class ThreadedModels:
    """Loaded models, their lanes, and what a front has of them.

    Attributes:
        not_loaded: what lies in the models folder and is not served.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._running: list[_Running] = []
        self.not_loaded: tuple[NotLoaded, ...] = ()

    def load_all(self, directory: Path, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Load the highest sound version of every model in `directory` and start their lanes.

        Raises:
            ModelsError: there is nothing to load.
            DragomanError: nothing of what is there can be loaded.
        """
        try:
            loading = load_models(directory, self._settings, self._start, should_stop=should_stop)
        except BaseException:
            self.close(0.0)
            raise
        self.not_loaded = loading.not_loaded

    def load(self, folder: Path) -> None:
        """Load the bundle in `folder` and start its lanes.

        Raises:
            BundleError: it is corrupt, or gives other answers than it did when it was made.
            ProviderUnavailable: the execution provider cannot be had here.
            ResourceUnavailable: there is no memory, or no thread, for its lanes.
        """
        self._start(load_model(folder, self._settings))

    def connect(self, metrics: Metrics) -> list[ServedModel]:
        """The models for the callers of one event loop, known to `metrics`."""
        return [self._served(each, metrics) for each in self._running]

    def registry(self, metrics: Metrics) -> Registry:
        """The same by name, with what is not served."""
        announce_not_loaded(self.not_loaded, metrics)
        return Registry(self.connect(metrics), self.not_loaded)

    def close(self, timeout_s: float) -> bool:
        """Stop all lanes, waiting at most `timeout_s`; returns whether they have ended."""
        for each in self._running:
            each.lanes.begin_close()
        end_s = time.monotonic() + timeout_s
        closed = [each.lanes.close(max(0.0, end_s - time.monotonic())) for each in self._running]
        return all(closed)

    def _start(self, model: LoadedModel) -> None:
        lanes = LaneThreads(model.backend, self._settings, load_s=model.load_s)
        self._running.append(_Running(model, lanes))

    def _served(self, running: _Running, metrics: Metrics) -> ServedModel:
        bundle = running.loaded.bundle
        model_metrics = metrics.for_model(bundle.name, bundle.manifest.task)
        served = ServedModel.of(
            name=bundle.name,
            version=bundle.version,
            manifest=bundle.manifest,
            tokenizer=bundle.tokenizer,
            engine=running.lanes.connect(model_metrics),
            metrics=model_metrics,
        )
        announce(served, self._settings, metrics)
        return served
