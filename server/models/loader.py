"""From a models folder to graphs that are known to be sound. In the process that has the graphs.

Nothing here knows of metrics, event loops or fronts: what those need is data (`LoadedModel.facts`, `NotLoaded`).
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.engine.layout import lane_layout, num_reserved_rows
from dragoman.server.engine.trial import check_answers
from dragoman.server.errors import BundleError, shown
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.memory_budget import MemoryBudget, engine_bytes
from dragoman.server.models.discovery import NotLoaded, discover, log_not_loaded

__all__ = [
    "LoadedModel",
    "Loading",
    "lanes_bytes",
    "load_backend",
    "load_checked_backend",
    "load_model",
    "load_models",
    "version_folder",
]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A bundle whose graphs are loaded and gave the right answers.

    Attributes:
        bundle: it.
        backend: its graphs, without a prefix cache.
        load_s: all of that took.
    """

    bundle: Bundle
    backend: Backend
    load_s: float

    @property
    def key(self) -> str:
        """By which lanes know the model."""
        return f"{self.bundle.name}/{self.bundle.version}"


@dataclass(frozen=True, slots=True)
class Loading:
    """What came of a models folder: the highest sound version of each model, and what is not served."""

    models: tuple[LoadedModel, ...]
    not_loaded: tuple[NotLoaded, ...]


def load_models(
    directory: Path,
    settings: EngineSettings,
    start: Callable[[LoadedModel], object] = lambda _: None,
    *,
    all_versions: bool = False,
    wanted: Collection[str] | None = None,
    budget: MemoryBudget | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Loading:
    """Load the highest sound version of every model in `directory`, or every sound version.

    A version that cannot be served keeps no other from being served: the next lower one of its model is loaded, and
    `not_loaded` names it.

    Args:
        directory: the models folder.
        settings: how models run.
        start: called with each model as soon as it is loaded, to start its lanes. Where it fails, so has the loading.
        all_versions: load every sound version of each model, not the highest alone.
        wanted: `name/version` of all that is to be loaded, and nothing else; None: whatever is there.
        budget: counts what the models reserve; None: it is of no matter afterwards.
        should_stop: asked between versions, so that a server told to stop while loading does not load them all.

    Raises:
        ModelsError: there is nothing to load.
        DragomanError: nothing of what is there can be loaded; the error is that of the first version tried.
    """
    found, not_loaded = discover(directory)
    models: list[LoadedModel] = []
    failures: list[tuple[Path, Exception]] = []
    budget = budget or MemoryBudget()

    def load(folder: Path) -> LoadedModel:
        model = load_model(folder, settings, budget)
        start(model)
        return model

    for versions in found:
        if wanted is not None:
            versions = [each for each in versions if f"{each.parent.name}/{each.name}" in wanted]  # noqa: PLW2901
        # Of these versions each one is loaded, or the highest sound one.
        is_each = all_versions or wanted is not None
        for candidates in [[each] for each in versions] if is_each else [versions]:
            model, failed = _load_highest(candidates, load, should_stop)
            models += [model] if model is not None else []
            failures += failed
    if not models and len(failures) == 1:
        raise failures[0][1]  # it says all that the log would say
    not_loaded += [NotLoaded.of_error(directory, folder, error) for folder, error in failures]
    if failures and not models:
        log_not_loaded(not_loaded)
        error = failures[0][1]
        error.args = (f"{error}; none of {len(failures)} versions can be served",)
        raise error
    return Loading(tuple(models), tuple(not_loaded))


def load_model(folder: Path, settings: EngineSettings, budget: MemoryBudget | None = None) -> LoadedModel:
    """Load the bundle in `folder`, run its graphs at their limits and check its golden examples.

    Args:
        folder: <models>/<name>/<version>.
        settings: how it runs.
        budget: what other models of this process have reserved; None: there are none.

    Raises:
        BundleError: it is corrupt, or gives other answers than it did when it was made.
        ProviderUnavailable: the execution provider cannot be had here.
        ResourceUnavailable: there is no memory for its lanes.
    """
    started = time.perf_counter()
    bundle = Bundle.read(folder)
    backend = load_checked_backend(bundle, settings, budget)
    return LoadedModel(bundle, backend, time.perf_counter() - started)


def load_checked_backend(
    bundle: Bundle, settings: EngineSettings, budget: MemoryBudget | None = None
) -> Backend:
    """A bundle's graphs, which lanes of these settings can serve: they have run at their limits.

    Raises:
        BundleError: a graph cannot be loaded or run, or a golden example gets another answer.
        ProviderUnavailable: the provider asked for cannot be had.
        ResourceUnavailable: there is no memory for the lanes.
    """
    backend = load_backend(bundle, settings)
    num_lanes, _ = lane_layout(settings)
    num_bytes = lanes_bytes(backend, settings)
    what = f"{bundle.path}: engine.lanes = {num_lanes} of engine.slots_per_lane = {settings.slots_per_lane}"
    if backend.reuses_prefixes:
        what += f" with engine.prefix_cache_bytes = {settings.prefix_cache_bytes}"
    with (budget or MemoryBudget()).granted(num_bytes, what, "lower one of them"):
        check_answers(backend, num_rows=settings.slots_per_lane)
    return backend


def lanes_bytes(backend: Backend, settings: EngineSettings) -> int:
    """Memory that a model's rows on all lanes and its prefix cache may take."""
    num_lanes, _ = lane_layout(settings)
    return engine_bytes(
        backend,
        num_lanes=num_lanes,
        rows_per_lane=settings.slots_per_lane + num_reserved_rows(settings),
        prefix_cache_bytes=settings.prefix_cache_bytes,
    )


def version_folder(directory: Path, name: str, version: str) -> Path:
    """The folder of a version.

    Raises:
        BundleError: the name or the version is not that of a folder in the models folder.
    """
    for part in (name, version):
        if part in {"", ".", ".."} or "/" in part or "\0" in part:
            raise BundleError(f"{shown(f'{name}/{version}')} is not in the models folder")
    return directory / name / version


def load_backend(bundle: Bundle, settings: EngineSettings) -> Backend:
    """A bundle's graphs with as many threads as one lane of an engine has.

    Raises:
        BundleError: a graph cannot be loaded.
        ProviderUnavailable: the provider or the kernels asked for cannot be had.
    """
    _, num_threads = lane_layout(settings)
    return Backend.load(bundle, provider=settings.provider, num_threads=num_threads, kernels=settings.kernels)


def _load_highest(
    versions: Sequence[Path], load: Callable[[Path], LoadedModel], should_stop: Callable[[], bool]
) -> tuple[LoadedModel | None, list[tuple[Path, Exception]]]:
    """The first of these versions that can be served, if one can, and those before it with the reason."""
    failures: list[tuple[Path, Exception]] = []
    for folder in versions:
        if should_stop():
            break
        try:
            return load(folder), failures
        except Exception as error:  # noqa: BLE001 a fault of ours keeps no other model from being served either
            failures.append((folder, error))
    return None, failures
