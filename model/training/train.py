"""Training, from a recipe to a run folder."""

import dataclasses
import shutil
import sys
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer

from common.errors import UsageError
from common.files import atomic_write
from model.corpora.corpus import Corpus, Pair
from model.corpora.load import load_corpus
from model.corpora.sources import STANDARD_INPUT
from model.errors import TrainingStopped
from model.loss import mean_loss
from model.recipe import Recipe
from model.run import (
    CHECKPOINT_FOLDER,
    CORPUS_FOLDER,
    RECIPE_FILE,
    STATE_FOLDER,
    TOKENIZER_FILE,
    Run,
    load_run,
    read_weights,
    save_run,
)
from model.tokenizer import load_tokenizer, train_tokenizer
from model.training.checkpoints import CheckpointKeeper, average_weights
from model.training.data import EncodedCorpus, encode_corpus
from model.training.distributed import World, joined_world
from model.training.hardware import choose_precision, keep_freed_memory, set_threads
from model.training.insight import Examiner
from model.training.loop import Examine, Outcome, fit
from model.training.measure import measure
from model.training.progress import Reporter
from model.training.report import write_report
from model.training.reproduction import flat_settings
from model.training.resume import make_room, resume_state
from model.training.state import State, StateStore
from model.training.stopping import StopRequest, StopRequestedError
from model.training.summary import TrainingSummary, outcome_facts, print_summary
from model.transfer import start_from
from model.transformer import LanguageModel, TranslationModel, build_model

__all__ = ["Beginning", "TrainingSummary", "train"]

_WIDE = 160  # lines in a file or a pipe are not cut


@dataclasses.dataclass(frozen=True)
class Beginning:
    """How a training starts, where there is something to start from.

    Attributes:
        resume: go on with the unfinished run in the folder.
        accept_changes: even if the recipe is another than it was begun with.
        restart: begin again, although an unfinished run is in the folder.
        init: a run folder whose weights and tokenizer to start from.
        new_tokenizer: with `init`, train the recipe's own tokenizer and carry over the rows of the embedding.
    """

    resume: bool = False
    accept_changes: bool = False
    restart: bool = False
    init: Path | None = None
    new_tokenizer: bool = False


def train(
    recipe: Recipe,
    out: Path,
    *,
    data: Path | None = None,
    beginning: Beginning | None = None,
    show_progress: bool = True,
) -> TrainingSummary:
    """Train by `recipe` and leave a run in the folder `out`, in place of an earlier finished run there.

    Under `torchrun` all its processes train together (`model.training.distributed`); the main one writes.

    Args:
        recipe: what to train, on what, and for how long.
        out: the run folder; `model.run` says what it holds.
        data: folder of the corpus, in place of the recipe's own.
        beginning: what to start from; from nothing if it is left out.
        show_progress: talk on standard error.

    Raises:
        UsageError: `out` holds something else than a run, or an unfinished one; the corpus, the recipe or the
            run to start from is at fault.
        OperationError: `out` cannot be written, or the loss is not finite.
        TrainingStopped: SIGTERM or Ctrl-C; what was reached is saved.
    """
    beginning = beginning or Beginning()
    recipe = recipe.with_data(data)
    start = load_run(beginning.init) if beginning.init else None
    stop = StopRequest()
    with joined_world(recipe.training.device) as world, stop.listening():
        if world.size > 1 and STANDARD_INPUT in dict(flat_settings(recipe.corpus.model_dump())).values():
            raise UsageError(
                f"{world.size} processes cannot share the standard input: "
                "write the corpus to a file, or train in one process"
            )
        notes, resumed = _open_folder(recipe, out, beginning, world)
        num_threads = set_threads(recipe.training.num_threads, world.num_local)
        width = None if sys.stderr.isatty() else _WIDE
        console = Console(
            stderr=True, quiet=not (show_progress and world.is_main), width=width, highlight=False
        )
        session = _Session(
            recipe, out, world, stop, console, num_threads, resumed, start, beginning.new_tokenizer
        )
        reporter = Reporter(
            out,
            console,
            resume_step=resumed.progress.step if resumed else None,
            silent=not world.is_main,
            max_steps=recipe.training.max_steps,
        )
        with reporter:
            for note in notes:
                reporter.say(note)
            try:
                summary = session.train(reporter)
            except StopRequestedError:
                step = resumed.progress.step if resumed else None
                raise TrainingStopped(step, interrupted=stop.interrupted) from None
        if world.is_main:
            write_report(out)
        print_summary(summary, console)
        return summary


def _open_folder(
    recipe: Recipe, out: Path, beginning: Beginning, world: World
) -> tuple[list[str], State | None]:
    """Make the run folder ready, in the main process; what to tell, and the state to go on from."""
    notes: list[str] = []
    resumed = None
    if beginning.resume:
        resumed, notes = resume_state(out, recipe, accepts_changes=beginning.accept_changes)
    if world.is_main:
        if not beginning.resume:
            make_room(out, restarts=beginning.restart)
        atomic_write(out / RECIPE_FILE, recipe.model_dump_json(indent=2) + "\n")
    world.sum(0)  # nobody goes on before the folder is as it should be
    return notes, resumed


@dataclasses.dataclass(frozen=True)
class _Session:
    """One sitting of a training."""

    recipe: Recipe
    out: Path
    world: World
    stop: StopRequest
    console: Console
    num_threads: int
    resumed: State | None
    start: Run | None  # whose weights to start from
    has_new_tokenizer: bool

    def train(self, reporter: Reporter) -> TrainingSummary:
        """Everything from reading the corpus to a finished run folder."""
        recipe, resumed, world = self.recipe, self.resumed, self.world
        with self.stop.at_once():
            reporter.phase("reading the corpus")
            corpus = load_corpus(recipe)
            for line in corpus.report.lines():
                reporter.say(line)
            reporter.phase("training the tokenizer")
            tokenizer = self._tokenizer(corpus)
            reporter.phase("encoding the corpus")
            encoded = self._encode(corpus, tokenizer)
            keep_freed_memory()  # not before: reading and the tokenizer's training free a great deal for good
            model = self._model(tokenizer, reporter)
        learned = _Learned(model, tokenizer, corpus, encoded)
        self._greet(learned, reporter)
        reporter.phase("training")
        keeper = CheckpointKeeper(
            self.out / CHECKPOINT_FOLDER,
            recipe.training.average_checkpoints,
            resumed.progress.kept if resumed else (),
        )
        outcome = fit(
            model,
            encoded,
            recipe.training,
            seed=recipe.seed,
            keeper=keeper,
            reporter=reporter,
            states=StateStore(self.out / STATE_FOLDER),
            resumed=resumed,
            world=world,
            stop=self.stop,
            examine=self._examiner(learned, reporter),
        )
        summary = None
        if world.is_main:
            # A model of its own: that of the loop may lie in parts in several processes.
            learned = dataclasses.replace(learned, model=build_model(model.dims).to(world.device))
            try:
                with self.stop.at_once():
                    summary = self._finish(learned, keeper, outcome, reporter)
            except StopRequestedError:
                raise TrainingStopped(outcome.num_steps, interrupted=self.stop.interrupted) from None
        finished: TrainingSummary = world.from_main(summary)
        return finished

    def _tokenizer(self, corpus: Corpus[Pair] | Corpus[str]) -> Tokenizer:
        """The run's own if it is there, that of the run to start from, or a new one."""
        path = self.out / TOKENIZER_FILE
        if self.resumed and path.is_file():
            return load_tokenizer(path)
        if self.start and not self.has_new_tokenizer:
            tokenizer = self.start.tokenizer
        else:
            settings = self.recipe.tokenizer
            texts = corpus.texts(settings.max_training_characters)
            tokenizer = train_tokenizer(settings, texts, self.recipe.task)
        if self.world.is_main:
            atomic_write(path, tokenizer.to_str(pretty=True))
        return tokenizer

    def _encode(self, corpus: Corpus[Pair] | Corpus[str], tokenizer: Tokenizer) -> EncodedCorpus:
        """In the main process first: the others then find its shards."""
        folder = self.out / CORPUS_FOLDER
        if self.world.is_main:
            encoded = encode_corpus(corpus, tokenizer, self.recipe, folder)
        self.world.sum(0)
        return encoded if self.world.is_main else encode_corpus(corpus, tokenizer, self.recipe, folder)

    def _model(self, tokenizer: Tokenizer, reporter: Reporter) -> TranslationModel | LanguageModel:
        torch.manual_seed(self.recipe.seed)
        model = build_model(self.recipe.dimensions(tokenizer.get_vocab_size()))
        if self.resumed:
            model.load_state_dict(self.resumed.group("model"))
        elif self.start:
            num_new = start_from(model, tokenizer, self.start)
            reporter.say(
                f"starting from {self.start.path}" + (f", {num_new:,} new tokens" if num_new else "")
            )
        if self.world.rank:  # weights are the same everywhere, dropout is not
            torch.manual_seed(self.recipe.seed + (self.world.rank << 32))
        return model.to(self.world.device)

    def _examiner(
        self,
        learned: "_Learned",
        reporter: Reporter,
    ) -> Examine:
        """What else to measure at each validation; nothing where the weights are in parts."""
        if self.world.size > 1 and self.recipe.training.parallel == "fsdp":
            return lambda _: {}
        return Examiner(
            learned.model,
            learned.tokenizer,
            learned.corpus,
            learned.encoded.validation,
            show_samples=reporter.samples,
            bleu_tokenize=self.recipe.bleu_tokenization,
        )

    def _greet(self, learned: "_Learned", reporter: Reporter) -> None:
        model, corpus, encoded = learned.model, learned.corpus, learned.encoded
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        device, size = self.world.device, self.world.size
        precision = choose_precision(self.recipe.training.precision, device)
        place = device.type if device.type != "cpu" else f"{self.num_threads} CPU threads"
        machine = f"{'fp32' if precision == torch.float32 else 'bf16'} on {place}"
        machine += f" in each of {size} processes" if size > 1 else ""
        reporter.say(
            f"{self.recipe.name}: {num_parameters:,} parameters, {encoded.size} to learn from; {machine}"
        )
        step = self.resumed.progress.step if self.resumed else 0
        facts = {"parameters": f"{num_parameters:,}", "corpus": encoded.size, "trained in": machine}
        if cleaning := corpus.report.lines():
            facts["corpus as read"] = "; ".join(cleaning)
        reporter.event(step, "started", facts)

    def _finish(
        self, learned: "_Learned", keeper: CheckpointKeeper, outcome: Outcome, reporter: Reporter
    ) -> TrainingSummary:
        """Choose the final weights, measure them and write the run."""
        reporter.phase("measuring quality")
        model, corpus, encoded = learned.model, learned.corpus, learned.encoded
        metrics = {"validation_loss": _take_best_weights(model, encoded, keeper, self.recipe)}
        metrics |= measure(
            model.eval(),
            learned.tokenizer,
            corpus,
            self.recipe.training.num_quality_examples,
            self.recipe.bleu_tokenization,
        )
        save_run(Run(self.out, model.cpu(), learned.tokenizer, self.recipe, outcome.num_steps, metrics))
        keeper.tidy()
        shutil.rmtree(self.out / CORPUS_FOLDER, ignore_errors=True)  # a finished run needs no training data
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        summary = TrainingSummary(self.out, num_parameters, outcome, encoded.num_too_long, metrics)
        reporter.event(outcome.num_steps, "ended", outcome_facts(summary))
        reporter.record(outcome.num_steps, metrics)
        return summary


@dataclasses.dataclass(frozen=True)
class _Learned:
    model: TranslationModel | LanguageModel
    tokenizer: Tokenizer
    corpus: Corpus[Pair] | Corpus[str]
    encoded: EncodedCorpus


def _take_best_weights(
    model: TranslationModel | LanguageModel, corpus: EncodedCorpus, keeper: CheckpointKeeper, recipe: Recipe
) -> float:
    """Load the mean of the checkpoints kept, or the best one if that validates better; returns the loss."""
    best, *others = keeper.kept
    if others:
        model.load_state_dict(average_weights(keeper.kept))
        loss = mean_loss(model, corpus.validation, recipe.training.batch_tokens)
        if loss <= best.validation_loss:
            return loss
    model.load_state_dict(read_weights(best.path))
    return best.validation_loss
