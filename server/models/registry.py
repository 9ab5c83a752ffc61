"""Which models this server has: <models>/<name>/<version>/ on disk, engines in memory."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from dragoman.common.errors import DragomanError, OperationError
from dragoman.server.bundle.reader import Bundle, one_line
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.suppression import Vocabulary
from dragoman.server.engine.engine import Engine, load_checked_backend
from dragoman.server.errors import ModelNotFound, NotLoadedReason
from dragoman.server.execution.memory import MemoryBudget
from dragoman.server.models.discovery import NotLoaded, discover
from dragoman.server.models.served_model import ServedModel, max_characters_per_token
from dragoman.server.operations.metrics import Metrics

__all__ = ["Registry", "load_model", "load_models"]

_log = structlog.get_logger(__name__)


class Registry:
    """The models being served, one version of each name.

    Attributes:
        not_loaded: what lies in the models folder and is not served, by name and version.
    """

    def __init__(self, models: Iterable[ServedModel], not_loaded: Iterable[NotLoaded] = ()) -> None:
        self.not_loaded = tuple(sorted(not_loaded, key=lambda each: (each.name, each.version)))
        self._models = {model.name: model for model in sorted(models, key=lambda model: model.name)}

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model called `name`; `version` "" is whichever is served.

        Raises:
            ModelNotFound: listing what there is.
        """
        model = self._models.get(name)
        if model is None or version not in {"", model.version}:
            requested = f"{name}/{version}" if version else name
            available = [f"{each.name}/{each.version}" for each in self.models]
            raise ModelNotFound(requested, available, self._why_not(name, version))
        return model

    def _why_not(self, name: str, version: str) -> str:
        """What keeps the model from being served, if it is there."""
        for each in self.not_loaded:
            if each.name == name and (not version or each.version in {"", version}):
                return f"{each.description} ({each.reason})"
        return ""

    @property
    def models(self) -> Sequence[ServedModel]:
        """All models, by name."""
        return tuple(self._models.values())

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def close(self, timeout_s: float | None = None) -> bool:
        """Stop all engines, waiting at most `timeout_s`; returns whether all their lanes have ended."""
        engines = [model.engine for model in self.models]
        for engine in engines:
            engine.begin_close()
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        closed = [engine.close(None if end_s is None else end_s - time.monotonic()) for engine in engines]
        return all(closed)


def load_models(
    directory: Path,
    settings: EngineSettings,
    metrics: Metrics,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Registry:
    """Load the highest sound version of every model in `directory`.

    A version that cannot be served keeps no other from being served: the next lower one of its model is loaded, and
    the registry, the log and the metric `models_not_loaded` name it. `should_stop` is asked between versions, so that a
    server told to stop while loading does not load them all.

    Raises:
        ModelsError: there is nothing to load.
        DragomanError: nothing of what is there can be loaded; the error is that of the first version tried.
    """
    found, not_loaded = discover(directory)
    models: list[ServedModel] = []
    failures: list[tuple[Path, Exception]] = []
    load = functools.partial(load_model, settings=settings, metrics=metrics, budget=MemoryBudget())
    try:
        for versions in found:
            model, failed = _load_highest(versions, load, should_stop)
            models += [model] if model is not None else []
            failures += failed
    except BaseException:
        Registry(models).close()
        raise
    if not models and len(failures) == 1:
        raise failures[0][1]  # it says all that the log would say
    not_loaded += [_not_loaded(directory, folder, error) for folder, error in failures]
    for each in not_loaded:
        metrics.models_not_loaded.labels(each.reason).inc()
        _log.warning(
            "not_loaded",
            model=each.name,
            version=each.version,
            reason=each.reason,
            description=each.description,
        )
    if failures and not models:
        error = failures[0][1]
        error.args = (f"{error}; none of {len(failures)} versions can be served",)
        raise error
    return Registry(models, not_loaded)


def _load_highest(
    versions: Sequence[Path], load: Callable[[Path], ServedModel], should_stop: Callable[[], bool]
) -> tuple[ServedModel | None, list[tuple[Path, Exception]]]:
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


def _not_loaded(directory: Path, folder: Path, error: Exception) -> NotLoaded:
    if not isinstance(error, DragomanError):
        _log.error("load_failed", path=str(folder), exc_info=error)
        return NotLoaded.of(
            directory, folder, "broken", f"unexpected {type(error).__name__}: {one_line(error)}"
        )
    reason: NotLoadedReason = "unavailable" if isinstance(error, OperationError) else "broken"
    return NotLoaded.of(directory, folder, reason, str(error))


def load_model(
    folder: Path, settings: EngineSettings, metrics: Metrics, budget: MemoryBudget | None = None
) -> ServedModel:
    """Load the bundle in `folder`, run its graphs at their limits, check its golden examples and start its lanes.

    Args:
        folder: <models>/<name>/<version>.
        settings: how it runs.
        metrics: told of it once it is known to be sound.
        budget: what other models of this process have reserved; None: there are none.

    Raises:
        BundleError: it is corrupt, or gives other answers than it did when it was made.
        ProviderUnavailable: the execution provider cannot be had here.
        ResourceUnavailable: there is no memory, or no thread, for its lanes.
    """
    started = time.perf_counter()
    bundle = Bundle.read(folder)
    manifest = bundle.manifest
    tokenizer = bundle.tokenizer
    backend = load_checked_backend(bundle, settings, budget)
    model_metrics = metrics.for_model(bundle.name, manifest.task)
    engine = Engine(backend, settings, model_metrics)
    seconds = time.perf_counter() - started
    metrics.watch(bundle.name, engine)
    if manifest.task == "generation":
        metrics.watch_prefix_cache(bundle.name, engine.prefix_cache)
        _warn_without_reuse(bundle, settings, engine)
    _warn_of_halves_on_cpu(bundle, settings)
    metrics.threads.inc(engine.num_threads)
    metrics.model_load_duration.labels(bundle.name).set(seconds)
    metrics.model_info.labels(
        bundle.name, bundle.version, manifest.task, manifest.precision, settings.provider
    ).set(1)
    _log.info(
        "model_loaded",
        model=bundle.name,
        version=bundle.version,
        task=manifest.task,
        precision=manifest.precision,
        provider=settings.provider,
        kernels=engine.kernels,
        threads=engine.num_threads,
        slots=engine.occupancy().slots_total,
        seconds=round(seconds, 3),
    )
    return ServedModel(
        name=bundle.name,
        version=bundle.version,
        provider=settings.provider,
        manifest=manifest,
        tokenizer=tokenizer,
        max_characters_per_token=max_characters_per_token(tokenizer),
        vocabulary=functools.cache(functools.partial(Vocabulary.of, tokenizer)),
        engine=engine,
        metrics=model_metrics,
    )


def _warn_without_reuse(bundle: Bundle, settings: EngineSettings, engine: Engine) -> None:
    """Say why prompts are computed whole although the settings ask for reuse."""
    if not settings.prefix_cache_bytes or engine.prefix_cache.max_blocks:
        return
    if "extend" in bundle.manifest.graphs:
        reason = f"engine.prefix_cache_bytes = {settings.prefix_cache_bytes} does not hold one block"
    else:
        reason = "the bundle has no graph 'extend': export it again"
    _log.warning("no_prefix_reuse", model=bundle.name, version=bundle.version, reason=reason)


def _warn_of_halves_on_cpu(bundle: Bundle, settings: EngineSettings) -> None:
    """Say that nothing is gained: ONNX Runtime's CPU provider widens halves to fp32 for every product."""
    if bundle.manifest.precision == "fp16" and settings.provider == "cpu":
        reason = "no faster than fp32 on a CPU, slower for a small model: export it with --precision int8"
        _log.warning("fp16_on_cpu", model=bundle.name, version=bundle.version, reason=reason)
