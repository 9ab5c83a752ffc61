"""The training loop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from common.errors import UsageError
from model.batching import Batch, BatchSource, Examples, Rows
from model.errors import TrainingStopped
from model.loss import sum_losses
from model.recipe import TrainingSettings
from model.training.checkpoints import CheckpointKeeper
from model.training.data import EncodedCorpus
from model.training.distributed import World, whole
from model.training.hardware import choose_precision, release_freed_memory
from model.training.meter import Meter, check_finite
from model.training.optimizer import learning_rate
from model.training.progress import Limits, Reporter, StoppedBy
from model.training.state import Progress, State, StateStore, optimizer_tensors, restore_optimizers
from model.training.step import TrainingStep
from model.training.stopping import StopRequest, StopRequestedError
from model.transformer import LanguageModel, TranslationModel

__all__ = ["Examine", "Outcome", "fit"]

_REPORT_INTERVAL_STEPS = 10
_MIN_VALIDATION_BATCH_TOKENS = 4_096  # small batches help learning; here they would only take time

Examine = Callable[[int], Mapping[str, float]]
"""Is given the step, returns figures by name."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the loop did, earlier sittings included."""

    num_steps: int
    seconds: float  # validation and checkpoints included
    num_tokens: int  # read and predicted, without padding
    padding_share: float  # of all that was computed
    stopped_by: StoppedBy


def fit(
    model: TranslationModel | LanguageModel,
    corpus: EncodedCorpus,
    settings: TrainingSettings,
    *,
    seed: int,
    keeper: CheckpointKeeper,
    reporter: Reporter,
    states: StateStore,
    resumed: State | None = None,
    world: World | None = None,
    stop: StopRequest | None = None,
    examine: Examine = lambda _: {},
) -> Outcome:
    """Train `model` in place until a limit is reached or validation stops improving.

    Args:
        model: on the world's device; with `resumed`, it has that state's weights already.
        corpus: what to learn from and to validate on.
        settings: how.
        seed: decides the order of the data.
        keeper: takes the checkpoints; with `resumed`, it holds those of that state.
        reporter: hears all that happens.
        states: where the training's state is saved.
        resumed: a state to go on from.
        world: the processes that train together; this one alone if it is left out.
        stop: asks for an end between steps.
        examine: further figures, measured at each evaluation in the main process.

    Raises:
        UsageError: `resumed` is of a training on another corpus.
        TrainingError: the loss is not finite, with the step.
        TrainingStopped: `stop` asked for it; the state is saved.
        OperationError: a checkpoint, a state or a figure cannot be written.
    """
    world = world or World(device=model.embedding.token.weight.device)
    progress = resumed.progress if resumed else Progress()
    precision = choose_precision(settings.precision, world.device)
    training_step = TrainingStep(model, settings, precision, world)
    if resumed:
        if progress.corpus != corpus.fingerprint:
            raise UsageError("the corpus is not the one this training was begun with: --restart begins again")
        restore_optimizers(model, training_step.optimizers, resumed.group("optimizer"))
        _restore_random(resumed.group("random"), world)
    batches = BatchSource(corpus.train, settings.batch_tokens, seed, progress.epoch, progress.num_batches)
    model.train()
    return _Training(
        model=model,
        corpus=corpus,
        settings=settings,
        training_step=training_step,
        batches=batches,
        keeper=keeper,
        reporter=reporter,
        states=states,
        world=world,
        stop=stop or StopRequest(),
        examine=examine,
        limits=Limits(settings, progress.elapsed_s),
        meter=Meter(world, progress.num_tokens, progress.num_cells),
        step=progress.step,
        evaluated_step=progress.evaluated_step,
        evaluations_since_best=progress.evaluations_since_best,
    ).run()


@dataclasses.dataclass(kw_only=True)
class _Training:
    """A training under way: what it works with, and where it stands."""

    model: TranslationModel | LanguageModel
    corpus: EncodedCorpus
    settings: TrainingSettings
    training_step: TrainingStep
    batches: BatchSource
    keeper: CheckpointKeeper
    reporter: Reporter
    states: StateStore
    world: World
    stop: StopRequest
    examine: Examine
    limits: Limits
    meter: Meter
    step: int  # optimizer steps done
    evaluated_step: int
    evaluations_since_best: int
    saved_s: float = dataclasses.field(default_factory=time.monotonic)

    def run(self) -> Outcome:
        """Evaluate and save where that is due, end where it is time, and otherwise learn from the next batch."""
        while True:
            now = self._agree()
            if now.stops:
                self._save_and_stop()
            is_due = self.step % self.settings.evaluation_interval_steps == 0 or now.limit is not None
            evaluates = is_due and self.step > self.evaluated_step
            if evaluates or self.step % _REPORT_INTERVAL_STEPS == 0:
                self._report(now.progress)
            if evaluates:
                self._evaluate()
            if evaluates or now.saves:
                self._save()
            if now.limit or 0 < self.settings.patience <= self.evaluations_since_best:
                num_tokens, num_cells = self.meter.counts()
                padding_share = 1.0 - num_tokens / num_cells
                seconds = self.limits.elapsed_s
                return Outcome(self.step, seconds, num_tokens, padding_share, now.limit or "patience")
            self._learn(now.progress)

    def _agree(self) -> "_Moment":
        """What all processes do next: by the main one's clock, and when any of them is asked to stop."""
        limit = self.limits.reached(self.step)
        saves = time.monotonic() - self.saved_s >= self.settings.state_interval_s
        progress = self.limits.progress(self.step)
        if self.world.size == 1:
            return _Moment(limit, saves, progress, self.stop.signal is not None)
        limit, saves, progress = self.world.from_main((limit, saves, progress))
        [num_stopping] = self.world.sum(self.stop.signal is not None)
        return _Moment(limit, saves, progress, num_stopping > 0)

    def _learn(self, progress: float) -> None:
        rate = learning_rate(self.settings, self.step, progress)
        rows = [self.batches.next_rows() for _ in range(self.settings.accumulation_steps)]
        parts = [self._part(self.corpus.train, batch_rows) for batch_rows in rows]
        [num_labels] = self.world.sum(sum(part.num_labels for part in parts))
        loss, norm = self.training_step.run(parts, rate, progress=progress, num_labels=int(num_labels))
        self.step += 1
        self.meter.add(loss, norm, rate, parts)

    def _report(self, progress: float) -> None:
        if figures := self.meter.read(self.step):
            self.reporter.show(progress, self.limits.elapsed_s, figures["loss"], figures["tokens_per_second"])
            self.reporter.record(self.step, figures)

    def _part(self, examples: Examples, rows: Rows) -> Batch:
        """This process's share of a batch; one without labels where there are fewer rows than processes."""
        share = self.world.share(rows)
        batch = examples.batch(share if len(share) else rows[:1])
        return batch if len(share) else batch.without_labels()

    def _evaluate(self) -> None:
        self.reporter.phase("validating")
        start_s = self.limits.elapsed_s
        try:
            with self.stop.at_once() if self.world.size == 1 else contextlib.nullcontext():
                figures = {"validation_loss": self._validation_loss()}
                figures |= self.examine(self.step) if self.world.is_main else {}
        except StopRequestedError:
            self._save_and_stop()
        weights = self._whole_weights()
        is_best = self.world.from_main(
            self.world.is_main and self.keeper.add(self.step, weights, figures["validation_loss"])
        )
        self.evaluated_step = self.step
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        self.limits.reserve(self.limits.elapsed_s - start_s)
        self.reporter.record(self.step, figures)
        shown = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items() if "/" not in name
        )
        self.reporter.say(f"step {self.step:,}: {shown}" + (", the best so far" if is_best else ""))
        self.reporter.phase("training")
        release_freed_memory()
        self.meter.restart_clock()

    def _validation_loss(self) -> float:
        batch_tokens = max(self.settings.batch_tokens, _MIN_VALIDATION_BATCH_TOKENS)
        validation = self.corpus.validation
        parts = (self._part(validation, rows) for rows in validation.plan(batch_tokens))
        total, num_labels = self.world.sum(*sum_losses(self.model, parts, self.training_step.plain_loss))
        loss = total / num_labels
        # The last gradient may have broken weights whose loss was still a number.
        check_finite(loss, self.step)
        return loss

    def _save(self) -> None:
        self.meter.check(self.step)
        num_tokens, num_cells = self.meter.counts()
        progress = Progress(
            step=self.step,
            epoch=self.batches.epoch,
            num_batches=self.batches.num_batches,
            evaluated_step=self.evaluated_step,
            evaluations_since_best=self.evaluations_since_best,
            elapsed_s=self.limits.elapsed_s,
            num_tokens=num_tokens,
            num_cells=num_cells,
            kept=self.keeper.record(),
            corpus=self.corpus.fingerprint,
        )
        groups = {
            "model": self._whole_weights(),
            "optimizer": optimizer_tensors(self.model, self.training_step.optimizers),
            "random": _random_tensors(self.world),
        }
        if self.world.is_main:
            self.states.save(State.of(progress, groups))
            self.keeper.tidy(spare_previous=True)  # the state before this one is there still, and names it
        self.saved_s = time.monotonic()

    def _whole_weights(self) -> dict[str, Tensor]:
        return {name: whole(tensor) for name, tensor in self.model.state_dict().items()}

    def _save_and_stop(self) -> NoReturn:
        self._save()
        raise TrainingStopped(self.step, interrupted=self.stop.interrupted)


@dataclasses.dataclass(frozen=True)
class _Moment:
    limit: StoppedBy | None
    saves: bool
    progress: float  # share of the training that lies behind
    stops: bool


def _random_tensors(world: World) -> dict[str, Tensor]:
    """The generators' states of all processes."""
    tensors = {f"cpu.{rank}": state for rank, state in enumerate(world.gather(torch.get_rng_state()))}
    if world.device.type == "cuda":
        states = world.gather(torch.cuda.get_rng_state(world.device))
        tensors |= {f"cuda.{rank}": state for rank, state in enumerate(states)}
    return tensors


def _restore_random(tensors: Mapping[str, Tensor], world: World) -> None:
    """Go on drawing where this process left off; one that is new keeps the generator it was seeded with."""
    if f"cpu.{world.rank}" in tensors:
        torch.set_rng_state(tensors[f"cpu.{world.rank}"])
    if world.device.type == "cuda" and f"cuda.{world.rank}" in tensors:
        torch.cuda.set_rng_state(tensors[f"cuda.{world.rank}"], world.device)
