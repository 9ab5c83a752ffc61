"""Which models this server has: <models>/<name>/<version>/ on disk, engines in memory."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from tokenizers import Tokenizer

from server.bundle import Bundle, Manifest
from server.config import EngineSettings
from server.decoding.suppression import Vocabulary
from server.engine import Engine
from server.errors import ModelNotFound, ModelsError
from server.metrics import Metrics, ModelMetrics
from server.tokenising import longest_token

__all__ = ["Registry", "ServedModel", "discover", "load_model", "load_models"]

_MAX_SHRINKING = 4
"""How many characters a tokenizer's normaliser may make one of: a letter may have three accents beside it."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A loaded bundle and all that answering with it takes.

    Attributes:
        max_characters_per_token: longest stretch of a text that one token may stand for.
        vocabulary: what each token adds to a text; laid out when it is first asked for.
    """

    name: str
    version: str
    provider: str
    manifest: Manifest
    tokenizer: Tokenizer
    max_characters_per_token: int
    vocabulary: Callable[[], Vocabulary]
    engine: Engine
    metrics: ModelMetrics

    @property
    def max_input_tokens(self) -> int:
        """Longest input accepted, special tokens included; a prompt leaves room for one token of answer."""
        limits = self.manifest.limits
        if self.manifest.task == "translation":
            return limits.max_source_tokens
        return min(limits.max_source_tokens, limits.max_context_tokens - 1)


class Registry:
    """The models being served, one version of each name."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.name: model for model in sorted(models, key=lambda model: model.name)}

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model called `name`; `version` "" is whichever is served.

        Raises:
            ModelNotFound: listing what there is.
        """
        model = self._models.get(name)
        if model is None or version not in {"", model.version}:
            requested = f"{name}/{version}" if version else name
            raise ModelNotFound(requested, [f"{each.name}/{each.version}" for each in self.models])
        return model

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


def discover(directory: Path) -> list[Path]:
    """The folder of the highest version of each model, sorted by name.

    Versions are whole numbers; other folders, and those whose name starts with a dot, are no versions.

    Raises:
        ModelsError: the folder is missing or holds no model.
    """
    found, others = [], []
    for model in _folders(directory):
        versions = _versions(model)
        if versions:
            found.append(max(versions, key=lambda version: int(version.name)))
        else:
            others.append(model)
    if not found:
        hint = f"; did you mean {directory.parent}?" if _versions(directory) else ""
        raise ModelsError(
            f"no models in {directory}: expected {directory}/<name>/<version>/bundle.json{hint}"
        )
    for folder in others:
        _log.warning("not_a_model", path=str(folder), reason="no folder in it is named by a number")
    return found


def load_models(
    directory: Path,
    settings: EngineSettings,
    metrics: Metrics,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Registry:
    """Load the highest version of every model in `directory`, check its golden examples, start its lanes.

    `should_stop` is asked between models, so that a server told to stop while loading does not load them all.

    Raises:
        ModelsError: there is nothing to load.
        BundleError: a bundle is corrupt, or gives other answers than it did when it was made.
        ProviderUnavailable: the execution provider cannot be had here.
    """
    models: list[ServedModel] = []
    try:
        for folder in discover(directory):
            if should_stop():
                break
            models.append(load_model(folder, settings, metrics))
    except BaseException:
        Registry(models).close()
        raise
    return Registry(models)


def load_model(folder: Path, settings: EngineSettings, metrics: Metrics) -> ServedModel:
    """Load the bundle in `folder`, check its golden examples and start its lanes.

    Raises:
        BundleError: it is corrupt, or gives other answers than it did when it was made.
        ProviderUnavailable: the execution provider cannot be had here.
    """
    started = time.perf_counter()
    bundle = Bundle.read(folder)
    manifest = bundle.manifest
    model_metrics = metrics.for_model(bundle.name, manifest.task)
    tokenizer = bundle.tokenizer
    engine = Engine.load(bundle, settings, model_metrics)
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
        max_characters_per_token=_MAX_SHRINKING * longest_token(tokenizer),
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


def _versions(model: Path) -> list[Path]:
    return [folder for folder in _folders(model) if folder.name.isdecimal()]


def _folders(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ModelsError(f"cannot read the models folder {directory}: {error.strerror}") from error
