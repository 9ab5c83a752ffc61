"""A model as a front has it: all that answering with it takes, but the graphs."""

from dataclasses import dataclass

import structlog
from tokenizers import Tokenizer

from dragoman.server.bundle.manifest import Manifest
from dragoman.server.config import EngineSettings
from dragoman.server.engine.client import EngineClient
from dragoman.server.operations.metrics import Metrics, ModelMetrics

__all__ = ["ServedModel", "announce", "longest_token", "max_characters_per_token", "withdraw"]

_MAX_SHRINKING = 4
"""How many characters a tokenizer's normaliser may make one of: a letter may have three accents beside it."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model as a front has it.

    Attributes:
        max_characters_per_token: longest stretch of a text that one token may stand for.
        engine: its lanes.
    """

    name: str
    version: str
    manifest: Manifest
    tokenizer: Tokenizer
    max_characters_per_token: int
    engine: EngineClient
    metrics: ModelMetrics

    @classmethod
    def of(
        cls,
        *,
        name: str,
        version: str,
        manifest: Manifest,
        tokenizer: Tokenizer,
        engine: EngineClient,
        metrics: ModelMetrics,
    ) -> "ServedModel":
        """A model of these parts."""
        return cls(
            name=name,
            version=version,
            manifest=manifest,
            tokenizer=tokenizer,
            max_characters_per_token=max_characters_per_token(tokenizer),
            engine=engine,
            metrics=metrics,
        )

    @property
    def provider(self) -> str:
        """The execution provider that its graphs run on."""
        return self.engine.facts.provider

    @property
    def max_input_tokens(self) -> int:
        """Longest input accepted, special tokens included; a prompt leaves room for one token of answer."""
        limits = self.manifest.limits
        if self.manifest.facts.has_source:
            return limits.max_source_tokens
        return min(limits.max_source_tokens, limits.max_context_tokens - 1)


def announce(
    model: ServedModel, settings: EngineSettings, metrics: Metrics, *, is_first: bool = True
) -> None:
    """Register a model with the metrics. In the server's first front, log that it is loaded and what is to be said."""
    manifest, facts = model.manifest, model.engine.facts
    metrics.watch(model.name, model.engine)
    if not manifest.facts.has_source:
        metrics.watch_prefix_cache(model.name, model.engine.prefix)
    if not is_first:
        return
    metrics.threads.set(facts.num_threads)  # all models have the same lanes
    metrics.model_load_duration.labels(model.name).set(facts.load_s)
    metrics.model_info.labels(
        model.name, model.version, manifest.task, manifest.precision, facts.provider
    ).set(1)
    _log.info(
        "model_loaded",
        model=model.name,
        version=model.version,
        task=manifest.task,
        precision=manifest.precision,
        provider=facts.provider,
        kernels=facts.kernels,
        threads=facts.num_threads,
        slots=facts.num_slots,
        seconds=round(facts.load_s, 3),
    )
    _warn_without_reuse(model, settings)
    _warn_of_halves_on_cpu(model)


def withdraw(model: ServedModel, metrics: Metrics, *, is_first: bool = True) -> None:
    """Take back what `announce` told the metrics of a version. What was counted stays."""
    manifest, facts = model.manifest, model.engine.facts
    metrics.unwatch(model.name, model.engine)
    if not manifest.facts.has_source:
        metrics.unwatch_prefix_cache(model.name, model.engine.prefix)
    if not is_first:
        return
    metrics.model_info.remove(model.name, model.version, manifest.task, manifest.precision, facts.provider)
    _log.info("model_unloaded", model=model.name, version=model.version)


def longest_token(tokenizer: Tokenizer) -> int:
    """Characters of the vocabulary's longest token, special ones left out: no text is tokenised as those."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return max((len(token) for token in tokenizer.get_vocab() if token not in special), default=1)


def max_characters_per_token(tokenizer: Tokenizer) -> int:
    """Longest stretch of a text that one token may stand for."""
    return _MAX_SHRINKING * longest_token(tokenizer)


def _warn_without_reuse(model: ServedModel, settings: EngineSettings) -> None:
    """Say why prompts are computed whole although the settings ask for reuse."""
    if (
        model.manifest.facts.has_source
        or not settings.prefix_cache_bytes
        or model.engine.facts.max_prefix_blocks
    ):
        return
    if "extend" in model.manifest.graphs:
        reason = f"engine.prefix_cache_bytes = {settings.prefix_cache_bytes} does not hold one block"
    else:
        reason = "the bundle has no graph 'extend': export it again"
    _log.warning("no_prefix_reuse", model=model.name, version=model.version, reason=reason)


def _warn_of_halves_on_cpu(model: ServedModel) -> None:
    """Say that nothing is gained: ONNX Runtime's CPU provider widens halves to fp32 for every product."""
    if model.manifest.precision == "fp16" and model.provider == "cpu":
        reason = "no faster than fp32 on a CPU, slower for a small model: export it with --precision int8"
        _log.warning("fp16_on_cpu", model=model.name, version=model.version, reason=reason)
