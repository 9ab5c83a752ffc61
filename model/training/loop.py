"""The training loop."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from model.batching import Batch, Examples
from model.errors import TrainingError
from model.loss import mean_loss, total_loss
from model.recipe import TrainingSettings
from model.training.checkpoints import CheckpointKeeper
from model.training.data import EncodedCorpus
from model.training.hardware import choose_precision
from model.training.optimizer import learning_rate, new_optimizers
from model.training.progress import Limits, Reporter
from model.transformer import LanguageModel, TranslationModel

__all__ = ["Outcome", "fit"]

_REPORT_INTERVAL_STEPS = 10
_MIN_VALIDATION_BATCH_TOKENS = 4_096  # small batches help learning; here they would only take time


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the loop did."""

    num_steps: int
    seconds: float  # validation and checkpoints included
    num_tokens: int  # read and predicted, without padding
    padding_share: float  # of all that was computed
    stopped_by: Literal["max_steps", "max_minutes", "patience"]


def fit(
    model: TranslationModel | LanguageModel,
    corpus: EncodedCorpus,
    settings: TrainingSettings,
    *,
    seed: int,
    keeper: CheckpointKeeper,
    reporter: Reporter,
) -> Outcome:
    """Train `model` in place until a limit is reached or validation stops improving.

    Raises:
        TrainingError: the loss is not finite, with the step.
        OperationError: a checkpoint or a figure cannot be written.
    """
    device = model.embedding.token.weight.device
    precision = choose_precision(settings.precision, device)
    optimizers = new_optimizers(model, settings)
    batches = _endless(corpus.train, settings.batch_tokens, seed)
    limits, meter = Limits(settings), _Meter()
    evaluations_since_best = 0
    model.train()
    for step in itertools.count(1):
        rate = learning_rate(settings, step - 1, limits.progress(step - 1))
        parts = list(itertools.islice(batches, settings.accumulation_steps))
        loss = _accumulate_gradients(model, parts, settings, precision)
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm or math.inf)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        meter.add(loss, parts)

        stopped_by: Literal["max_steps", "max_minutes", "patience"] | None = limits.reached(step)
        evaluates = stopped_by is not None or step % settings.evaluation_interval_steps == 0
        if evaluates or step % _REPORT_INTERVAL_STEPS == 0:
            figures = meter.read(step)
            reporter.show(
                limits.progress(step), limits.elapsed_s, figures["loss"], figures["tokens_per_second"]
            )
            reporter.record(step, {**figures, "learning_rate": rate, "gradient_norm": float(norm)})
        if evaluates:
            reporter.phase("validating")
            start_s = limits.elapsed_s
            validation_loss = _validate(model, corpus, settings, step)
            is_best = keeper.add(step, model.state_dict(), validation_loss)
            limits.reserve(limits.elapsed_s - start_s)
            evaluations_since_best = 0 if is_best else evaluations_since_best + 1
            reporter.record(step, {"validation_loss": validation_loss})
            reporter.say(
                f"step {step:,}: loss {figures['loss']:.4f}, validation {validation_loss:.4f}"
                + (", the best so far" if is_best else "")
            )
            reporter.phase("training")
            if settings.patience and evaluations_since_best >= settings.patience:
                stopped_by = stopped_by or "patience"
            meter.restart_clock()
        if stopped_by:
            return Outcome(step, limits.elapsed_s, meter.num_tokens, meter.padding_share, stopped_by)
    raise AssertionError("the loop has no other end")


def _accumulate_gradients(
    model: TranslationModel | LanguageModel,
    parts: Sequence[Batch],
    settings: TrainingSettings,
    precision: torch.dtype,
) -> Tensor:
    """Add the gradients of the mean loss over all labels of `parts`; returns that loss."""
    device = model.embedding.token.weight.device
    num_labels = sum(part.num_labels for part in parts)
    loss = torch.zeros((), device=device)
    for part in parts:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            terms = total_loss(
                model, part.to(device), label_smoothing=settings.label_smoothing, r_drop=settings.r_drop
            )
            share = terms.total / num_labels
        share.backward()
        loss += share.detach()
    return loss


def _validate(
    model: TranslationModel | LanguageModel, corpus: EncodedCorpus, settings: TrainingSettings, step: int
) -> float:
    loss = mean_loss(model, corpus.validation, max(settings.batch_tokens, _MIN_VALIDATION_BATCH_TOKENS))
    _check_finite(loss, step)  # the last gradient may have broken weights whose loss was still a number
    return loss


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} at step {step}: lower training.max_learning_rate "
            "or lengthen training.warmup_steps"
        )


class _Meter:
    """Loss and throughput, and the guard against a loss that is not finite."""

    def __init__(self) -> None:
        self.num_tokens, self._num_cells = 0, 0
        self._losses: list[Tensor] = []  # not yet read: reading one waits for a GPU
        self._tokens_read = 0
        self._read_s = time.monotonic()

    @property
    def padding_share(self) -> float:
        return 1.0 - self.num_tokens / self._num_cells

    def add(self, loss: Tensor, parts: Sequence[Batch]) -> None:
        self._losses.append(loss)
        self.num_tokens += sum(part.num_tokens for part in parts)
        self._num_cells += sum(part.num_cells for part in parts)

    def restart_clock(self) -> None:
        """What went on since the last reading was not training."""
        self._read_s = time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """Mean loss and tokens/s since the last reading; `step` is the last that was added."""
        losses = torch.stack(self._losses).tolist()
        for index, loss in enumerate(losses, start=step - len(losses) + 1):
            _check_finite(loss, index)
        now_s = time.monotonic()
        tokens_per_second = (self.num_tokens - self._tokens_read) / max(now_s - self._read_s, 1e-9)
        self._losses, self._tokens_read, self._read_s = [], self.num_tokens, now_s
        return {"loss": sum(losses) / len(losses), "tokens_per_second": tokens_per_second}


def _endless(examples: Examples, batch_tokens: int, seed: int) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from map(examples.batch, examples.plan(batch_tokens, np.random.default_rng([seed, epoch])))
