"""Models of this process, whose lanes are its threads."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dragoman.server.config import EngineSettings
from dragoman.server.engine.known_lane import LaneUse
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.models.discovery import NotLoaded
from dragoman.server.models.loader import LoadedModel, load_model, load_models
from dragoman.server.models.registry import Registry, announce_not_loaded
from dragoman.server.models.served_model import ServedModel, announce
from dragoman.server.operations.metrics import Metrics

__all__ = ["ThreadedModels"]


class ThreadedModels:
    """Loaded models, their lanes, and what a front has of them.

    Attributes:
        not_loaded: what lies in the models folder and is not served.
    """

    def __init__(self, settings: EngineSettings, on_stuck: Callable[[int], object] = lambda _: None) -> None:
        """`on_stuck` is called, in some thread, with a lane that gives no sign of life."""
        self._settings = settings
        self._lanes = LaneThreads(settings, on_stuck)
        self._loaded: list[LoadedModel] = []
        self.not_loaded: tuple[NotLoaded, ...] = ()

    def load_all(self, directory: Path, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Load the highest sound version of every model in `directory` and start the lanes.

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
        """Load the bundle in `folder` and have it on the lanes.

        Raises:
            BundleError: it is corrupt, or gives other answers than it did when it was made.
            ProviderUnavailable: the execution provider cannot be had here.
            ResourceUnavailable: there is no memory, or no thread, for its lanes.
        """
        self._start(load_model(folder, self._settings))

    def connect(self, metrics: Metrics) -> list[ServedModel]:
        """The models for the callers of one event loop, known to `metrics`."""
        uses = self._lanes.uses()
        return [self._served(each, metrics, uses) for each in self._loaded]

    def registry(self, metrics: Metrics) -> Registry:
        """The same by name, with what is not served."""
        announce_not_loaded(self.not_loaded, metrics)
        return Registry(self.connect(metrics), self.not_loaded)

    def close(self, timeout_s: float) -> bool:
        """Stop all lanes, waiting at most `timeout_s`; returns whether they have ended."""
        return self._lanes.close(timeout_s)

    def _start(self, model: LoadedModel) -> None:
        self._lanes.add_model(model.key, model.backend, load_s=model.load_s)
        self._loaded.append(model)

    def _served(self, loaded: LoadedModel, metrics: Metrics, uses: Sequence[LaneUse]) -> ServedModel:
        bundle = loaded.bundle
        model_metrics = metrics.for_model(bundle.name, bundle.manifest.task)
        served = ServedModel.of(
            name=bundle.name,
            version=bundle.version,
            manifest=bundle.manifest,
            tokenizer=bundle.tokenizer,
            engine=self._lanes.connect(model_metrics, model=loaded.key, uses=uses),
            metrics=model_metrics,
        )
        announce(served, self._settings, metrics)
        return served
