"""Models of this process, whose lanes are its threads."""

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dragoman.server.config import EngineSettings
from dragoman.server.engine.known_lane import LaneUse
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.engine.warm_up import warm_up_input
from dragoman.server.errors import ResourceUnavailable
from dragoman.server.execution.memory_budget import MemoryBudget
from dragoman.server.models.discovery import NotLoaded
from dragoman.server.models.loader import LoadedModel, lanes_bytes, load_model, load_models
from dragoman.server.models.registry import Registry, announce_not_loaded
from dragoman.server.models.served_model import ServedModel, announce, withdraw
from dragoman.server.models.unloading import end_calls
from dragoman.server.operations.metrics import Metrics
from dragoman.server.processes.linux import trim_memory

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
        self._loaded: dict[str, LoadedModel] = {}  # by key
        self._budget = MemoryBudget()
        # Always the same thread: glibc has memory for each that allocates, and gives little of it back.
        self._changes = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="models")
        self._last_change: concurrent.futures.Future[None] | None = None
        self.not_loaded: tuple[NotLoaded, ...] = ()

    def load_all(
        self,
        directory: Path,
        *,
        all_versions: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Load the highest sound version of every model in `directory`, or every sound one, and start the lanes.

        Raises:
            ModelsError: there is nothing to load.
            DragomanError: nothing of what is there can be loaded.
        """
        try:
            loading = load_models(
                directory,
                self._settings,
                self._start,
                all_versions=all_versions,
                budget=self._budget,
                should_stop=should_stop,
            )
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
        self._start(load_model(folder, self._settings, self._budget))

    def connect(self, metrics: Metrics) -> list[ServedModel]:
        """The models for the callers of one event loop, known to `metrics`."""
        uses = self._lanes.uses()
        return [self._served(each, metrics, uses) for each in self._loaded.values()]

    def registry(self, metrics: Metrics) -> Registry:
        """The same by name, with what is not served. From now on it is this registry that changes are made in."""
        announce_not_loaded(self.not_loaded, metrics)
        self._metrics, self._uses = metrics, self._lanes.uses()
        served = [self._served(each, metrics, self._uses) for each in self._loaded.values()]
        self._registry = Registry(served, self.not_loaded)
        return self._registry

    async def load_version(self, folder: Path) -> None:
        """Load the bundle in `folder` while others are served, and let it take calls.

        Raises:
            DragomanError: as `load`; or it is loaded already. What was served is served on.
        """
        key = f"{folder.parent.name}/{folder.name}"
        if key in self._loaded:
            raise ResourceUnavailable(f"{key} is loaded already")
        await self._make(self.load, folder)
        served = self._served(self._loaded[key], self._metrics, self._uses)
        await self._registry.prepare(served)
        self._registry.add(served)

    async def unload_version(self, key: str, limit_s: float) -> None:
        """Let a version take no calls, and free its memory once those that run have ended, within `limit_s`.

        Raises:
            ResourceUnavailable: it is not loaded.
        """
        if key not in self._loaded:
            raise ResourceUnavailable(f"{key} is not loaded")
        [served] = [each for each in self._registry.models if f"{each.name}/{each.version}" == key]
        await end_calls(self._registry, served, limit_s)
        withdraw(served, self._metrics)
        await self._make(self._unload, key)

    def close(self, timeout_s: float) -> bool:
        """Stop all lanes and changes, waiting at most `timeout_s`; returns whether they have ended.

        Nothing ends a version's loading. Where one goes on, the process has to leave without waiting for its threads.
        """
        end_s = time.monotonic() + timeout_s
        self._changes.shutdown(wait=False, cancel_futures=True)
        is_over = self._lanes.close(timeout_s)
        if self._last_change is not None:
            concurrent.futures.wait([self._last_change], max(0.0, end_s - time.monotonic()))
            is_over &= self._last_change.done()
        return is_over

    async def _make(self, change: Callable[..., None], *arguments: object) -> None:
        """Make a change in its thread, which goes on where the caller leaves."""
        self._last_change = self._changes.submit(change, *arguments)
        await asyncio.wrap_future(self._last_change)

    def _start(self, model: LoadedModel) -> None:
        try:
            self._lanes.add_model(
                model.key, model.backend, load_s=model.load_s, first_input=warm_up_input(model.bundle)
            )
        except BaseException:
            self._budget.give_back(lanes_bytes(model.backend, self._settings))
            raise
        self._loaded[model.key] = model

    def _unload(self, key: str) -> None:
        self._lanes.remove_model(key)
        self._budget.give_back(lanes_bytes(self._loaded.pop(key).backend, self._settings))
        trim_memory()

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
