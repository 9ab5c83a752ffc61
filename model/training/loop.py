"""The training loop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from dragoman.common.errors import UsageError
from dragoman.model.batching import Batch, BatchSource, Examples, Rows
from dragoman.model.errors import TrainingError, TrainingStopped
from dragoman.model.recipe import TrainingSettings
from dragoman.model.training.checkpoints import CheckpointKeeper
from dragoman.model.training.data import EncodedCorpus
from dragoman.model.training.distributed import World, whole
from dragoman.model.training.hardware import choose_precision, release_freed_memory
from dragoman.model.training.limits import MAX_EXAMINATION_SHARE, MAX_VALIDATION_SHARE, Limits, StoppedBy
from dragoman.model.training.meter import Meter, check_finite
from dragoman.model.training.optimizer import learning_rate
from dragoman.model.training.progress import TRAINING_PHASE, Reporter
from dragoman.model.training.state import Progress, State, StateStore, optimizer_tensors, restore_optimizers
from dragoman.model.training.step import TrainingStep
from dragoman.model.training.stopping import StopRequest, StopRequestedError
from dragoman.model.training.validation import Validation
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["Examine", "Outcome", "fit"]

_REPORT_INTERVAL_STEPS = 10
_FIRST_LOOK = 0.5  # of a limit of minutes: evaluated then at the latest, which tells what it takes

Examine = Callable[[int, float], Mapping[str, float]]
"""Is given the step, and when its time is over (`time.monotonic`); returns figures by name."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the loop did, earlier sittings included."""

    num_steps: int
    seconds: float  # validation and checkpoints included
    num_tokens: int  # read and predicted, without padding
    padding_share: float  # of all that was computed
    stopped_by: StoppedBy
    end_s: float  # when `max_minutes` are over, by `time.monotonic`; infinite without them


def fit(
    model: TranslationModel | LanguageModel,
    corpus: EncodedCorpus,
    settings: TrainingSettings,
    *,
    validation: Validation,
    seed: int,
    keeper: CheckpointKeeper,
    reporter: Reporter,
    states: StateStore,
    resumed: State | None = None,
    world: World | None = None,
    stop: StopRequest | None = None,
    examine: Examine = lambda *_: {},
    quality_ratio: float = 1.0,
) -> Outcome:
    """Train `model` in place until a limit is reached or validation stops improving.

    Args:
        model: on the world's device; with `resumed`, it has that state's weights already.
        corpus: what to learn from.
        settings: how.
        validation: what to validate on.
        seed: decides the order of the data.
        keeper: takes the checkpoints; with `resumed`, it holds those of that state.
        reporter: hears all that happens.
        states: where the training's state is saved.
        resumed: a state to go on from.
        world: the processes that train together; this one alone if it is left out.
        stop: asks for an end between steps.
        examine: further figures, measured at each evaluation in the main process.
        quality_ratio: how many times as long as `examine` the measurement of the final weights takes.

    Raises:
        UsageError: `resumed` is of a training on another corpus.
        TrainingError: the loss is not finite, with the step; `max_minutes` end before the first one.
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
        quality_ratio=quality_ratio,
        validation=validation,
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
    quality_ratio: float
    validation: Validation
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
            if now.evaluates or self.step % _REPORT_INTERVAL_STEPS == 0:
                self._report()
            if now.evaluates:
                self._evaluate()
            elif now.saves:
                self._save()
            if now.limit or 0 < self.settings.patience <= self.evaluations_since_best:
                return self._outcome(now.limit or "patience")
            self._learn(now.progress)

    def _agree(self) -> "_Moment":
        """What all processes do next: by the main one's clock, and when any of them is asked to stop."""
        limit = self.limits.reached(self.step)
        saves = time.monotonic() - self.saved_s >= self.settings.state_interval_s
        progress = self.limits.progress(self.step)
        evaluates = self._is_to_evaluate(limit, progress)
        if self.world.size == 1:
            return _Moment(limit, evaluates, saves, progress, self.stop.signal is not None)
        limit, evaluates, saves, progress = self.world.from_main((limit, evaluates, saves, progress))
        [num_stopping] = self.world.sum(self.stop.signal is not None)
        return _Moment(limit, evaluates, saves, progress, num_stopping > 0)

    def _is_to_evaluate(self, limit: StoppedBy | None, progress: float) -> bool:
        if self.step <= self.evaluated_step:
            return False
        is_due = (
            self.step % self.settings.evaluation_interval_steps == 0 and self.limits.has_room_for_evaluation
        )
        is_late = self.limits.has_time_limit and not self.evaluated_step and progress >= _FIRST_LOOK
        return is_due or is_late or limit is not None

    def _outcome(self, stopped_by: StoppedBy) -> Outcome:
        if not self.step:
            raise TrainingError(
                f"training.max_minutes = {self.settings.max_minutes:g} end before the first step: give it more of them"
            )
        num_tokens, num_cells = self.meter.counts()
        return Outcome(
            num_steps=self.step,
            seconds=self.limits.elapsed_s,
            num_tokens=num_tokens,
            padding_share=1.0 - num_tokens / num_cells,
            stopped_by=stopped_by,
            end_s=self.limits.end_s,
        )

    def _learn(self, progress: float) -> None:
        rate = learning_rate(self.settings, self.step, progress)
        rows = [self.batches.next_rows() for _ in range(self.settings.accumulation_steps)]
        parts = [self._part(self.corpus.train, batch_rows) for batch_rows in rows]
        [num_labels] = self.world.sum(sum(part.num_labels for part in parts))
        loss, norm = self.training_step.run(parts, rate, progress=progress, num_labels=int(num_labels))
        self.step += 1
        self.meter.add(loss, norm, rate, parts)

    def _report(self) -> None:
        if figures := self.meter.read(self.step):
            done, elapsed_s = self.limits.completion(self.step), self.limits.elapsed_s
            self.reporter.show(done, elapsed_s, figures["loss"], figures["tokens_per_second"])
            self.reporter.record(self.step, figures)

    def _part(self, examples: Examples, rows: Rows) -> Batch:
        """This process's share of a batch; one without labels where there are fewer rows than processes."""
        share = self.world.share(rows)
        batch = examples.batch(share if len(share) else rows[:1])
        return batch if len(share) else batch.without_labels()

    def _evaluate(self) -> None:
        """Validate, keep a checkpoint if it is among the best, and save the state."""
        self.reporter.phase("validating")
        start_s = self.limits.elapsed_s
        try:
            with self.stop.at_once() if self.world.size == 1 else contextlib.nullcontext():
                figures, final_s = self._figures()
        except StopRequestedError:
            self._save_and_stop()
        weights = self._whole_weights()
        is_best = self.world.from_main(
            self.world.is_main and self.keeper.add(self.step, weights, figures["validation_loss"])
        )
        self.evaluated_step = self.step
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        self.reporter.record(self.step, figures)
        shown = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items() if "/" not in name
        )
        self.reporter.say(f"step {self.step:,}: {shown}" + (", the best so far" if is_best else ""))
        self.reporter.phase(TRAINING_PHASE)
        release_freed_memory()
        self._save()
        self.limits.add_evaluation(self.limits.elapsed_s - start_s, final_s)
        self.meter.restart_clock()

    def _figures(self) -> tuple[dict[str, float], float]:
        """What is measured of the weights as they are, and how long the measurement of the final ones will take."""
        start_s = time.monotonic()
        figures = {"validation_loss": self._validation_loss()}
        loss_s = time.monotonic() - start_s
        if self.world.is_main:
            end_s = time.monotonic() + self.limits.share(MAX_EXAMINATION_SHARE)
            figures |= self.examine(self.step, min(end_s, self.limits.end_s))
        examination_s = time.monotonic() - start_s - loss_s
        averages = self.settings.average_checkpoints > 1
        # A look that was cut short says too little of what reads less: it takes as long at least.
        return figures, max(1.0, self.quality_ratio) * examination_s + (loss_s if averages else 0.0)

    def _validation_loss(self) -> float:
        end_s = time.monotonic() + self.limits.share(MAX_VALIDATION_SHARE)
        is_first = self.validation.num_batches is None
        loss = self.validation.loss(
            self.model,
            self.training_step.plain_loss,
            world=self.world,
            part=self._part,
            is_over=lambda: time.monotonic() >= end_s,
        )
        if is_first and self.validation.share < 1.0:
            self.reporter.say(
                f"validation reads {100 * self.validation.share:.0f} % of its examples: "
                "for all of them training.max_minutes are too few"
            )
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
            num_validation_batches=self.validation.num_batches,
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
    evaluates: bool
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
