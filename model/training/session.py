"""One sitting of a training: from reading the corpus to a finished run folder, or to where it is stopped."""

import contextlib
import dataclasses
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from dragoman.common.errors import OperationError, UsageError
from dragoman.common.files import atomic_write
from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.corpora.load import load_corpus
from dragoman.model.errors import CorpusError, TrainingStopped
from dragoman.model.quality import Comparison
from dragoman.model.recipe import Recipe
from dragoman.model.run import (
    CHECKPOINT_FOLDER,
    CORPUS_FOLDER,
    START_RECORD_FILE,
    STATE_FOLDER,
    TOKENIZER_FILE,
    Run,
    save_run,
)
from dragoman.model.shards import remove_shards
from dragoman.model.tokenizer import load_tokenizer, train_tokenizer
from dragoman.model.training.checkpoints import CheckpointKeeper, load_best_weights
from dragoman.model.training.corpus_record import changes_since_training, in_words, record_files
from dragoman.model.training.data import EncodedCorpus, encode_corpus
from dragoman.model.training.distributed import World
from dragoman.model.training.doubts import doubts, unigram_loss
from dragoman.model.training.hardware import check_memory, choose_precision, keep_freed_memory
from dragoman.model.training.insight import Examiner, quality_ratio
from dragoman.model.training.loop import Examine, Outcome, fit
from dragoman.model.training.measure import measure
from dragoman.model.training.progress import Reporter
from dragoman.model.training.state import State, StateStore
from dragoman.model.training.stopping import StopRequest, StopRequestedError
from dragoman.model.training.summary import TrainingSummary, outcome_facts
from dragoman.model.training.validation import Validation
from dragoman.model.transfer import start_from
from dragoman.model.transformer import LanguageModel, TranslationModel, build_model

__all__ = ["Session"]


@dataclasses.dataclass(frozen=True)
class Session:
    """What a sitting works with."""

    recipe: Recipe
    out: Path
    world: World
    stop: StopRequest
    num_threads: int
    resumed: State | None
    start: Run | None  # whose weights to start from
    has_new_tokenizer: bool
    resumes: bool  # even where no state was saved yet
    accepts_changes: bool

    def train(self, reporter: Reporter) -> TrainingSummary:
        """Everything from reading the corpus to a finished run folder."""
        recipe, world = self.recipe, self.world
        with self.stop.at_once():
            reporter.phase("reading the corpus")
            corpus = load_corpus(recipe)
            for line in corpus.report.lines():
                reporter.say(line)
            files_digest, changes = self._record_files(corpus)
            if changes:
                reporter.say(f"changed: {in_words(changes)}")
            reporter.phase("training the tokenizer")
            tokenizer = self._tokenizer(corpus)
            reporter.phase("encoding the corpus")
            encoded = self._encode(corpus, tokenizer, files_digest)
            resumed = self._resumed_on(encoded, has_changed=bool(changes))
            keep_freed_memory()  # not before: reading and the tokenizer's training free a great deal for good
            model = self._model(tokenizer, reporter)
        validation = Validation(
            encoded.validation,
            recipe.training.batch_tokens,
            resumed.progress.num_validation_batches if resumed else None,
        )
        learned = _Learned(model, tokenizer, corpus, encoded, validation)
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
            validation=learned.validation,
            seed=recipe.seed,
            keeper=keeper,
            reporter=reporter,
            states=StateStore(self.out / STATE_FOLDER),
            resumed=resumed,
            world=world,
            stop=self.stop,
            examine=self._examiner(learned, reporter),
            quality_ratio=quality_ratio(corpus, recipe.training.num_quality_examples),
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

    def _encode(
        self, corpus: Corpus[Pair] | Corpus[str], tokenizer: Tokenizer, files_digest: str
    ) -> EncodedCorpus:
        """In the main process first: the others then find its shards."""

        def encode() -> EncodedCorpus:
            folder = self.out / CORPUS_FOLDER
            return encode_corpus(corpus, tokenizer, self.recipe, folder, files_digest=files_digest)

        if self.world.is_main:
            encoded = encode()
            if changes := changes_since_training(self.out, corpus.files):
                raise CorpusError(f"while it was read, {in_words(changes)}: begin again once it is whole")
        self.world.sum(0)
        return encoded if self.world.is_main else encode()

    def _record_files(self, corpus: Corpus[Pair] | Corpus[str]) -> tuple[str, list[str]]:
        """As `record_files`, in the main process for all."""
        told = None
        if self.world.is_main:
            told = record_files(
                self.out, corpus.files, resumes=self.resumes, accepts_changes=self.accepts_changes
            )
        shared: tuple[str, list[str]] = self.world.from_main(told)
        return shared

    def _resumed_on(self, encoded: EncodedCorpus, *, has_changed: bool) -> State | None:
        """The state to go on from, fit for the corpus that is there now.

        Raises:
            UsageError: it is of a training on another corpus, which was not accepted.
        """
        if self.resumed is None:
            return None
        if not has_changed and self.resumed.progress.corpus == encoded.fingerprint:
            return self.resumed
        if not self.accepts_changes:
            raise UsageError(
                f"the corpus is not the one that the run in {self.out} was begun with: give --accept-changes to go on "
                "with it, or --restart to begin again"
            )
        return self.resumed.on_corpus(encoded.fingerprint)

    def _model(self, tokenizer: Tokenizer, reporter: Reporter) -> TranslationModel | LanguageModel:
        dimensions = self.recipe.dimensions(tokenizer.get_vocab_size())
        if self.world.device.type == "cpu" and self.recipe.training.parallel != "fsdp":
            with torch.device("meta"):  # shapes without memory
                check_memory(sum(parameter.numel() for parameter in build_model(dimensions).parameters()))
        torch.manual_seed(self.recipe.seed)
        model = build_model(dimensions)
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
            return lambda *_: {}
        return Examiner(
            learned.model,
            learned.tokenizer,
            learned.corpus,
            learned.encoded.validation,
            show_samples=reporter.samples,
            comparison=Comparison.of(self.recipe),
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
        settings = self.recipe.training
        start_s = time.monotonic()
        kept = keeper.kept if start_s < outcome.end_s else keeper.kept[:1]  # a mean has to be validated
        loss = load_best_weights(model, kept, lambda: learned.validation.loss_of(model))
        quality = measure(
            model.eval(),
            learned.tokenizer,
            corpus,
            settings.num_quality_examples,
            Comparison.of(self.recipe),
            end_s=outcome.end_s,
        )
        metrics = {"validation_loss": loss, **quality.figures}
        warning = doubts(
            num_steps=outcome.num_steps,
            loss=loss,
            unigram=self._unigram_loss(learned),
            vocabulary_size=model.dims.vocabulary_size,
            is_from_scratch=not (self.out / START_RECORD_FILE).is_file(),
        )
        save_run(Run(self.out, model.cpu(), learned.tokenizer, self.recipe, outcome.num_steps, metrics))
        keeper.tidy()
        with contextlib.suppress(OperationError):  # the run is whole: it only takes more room than it needs
            remove_shards(self.out / CORPUS_FOLDER)
        summary = TrainingSummary(
            path=self.out,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            outcome=outcome,
            seconds=outcome.seconds + time.monotonic() - start_s,
            num_too_long=encoded.num_too_long,
            metrics=metrics,
            cuts=tuple(quality.cuts),
            warning=warning,
        )
        reporter.event(outcome.num_steps, "ended", outcome_facts(summary))
        reporter.record(outcome.num_steps, metrics)
        return summary

    def _unigram_loss(self, learned: "_Learned") -> float:
        return unigram_loss(
            learned.encoded.train,
            learned.validation.batches(),
            learned.model.dims.vocabulary_size,
            batch_tokens=self.recipe.training.batch_tokens,
            seed=self.recipe.seed,
        )


@dataclasses.dataclass(frozen=True)
class _Learned:
    model: TranslationModel | LanguageModel
    tokenizer: Tokenizer
    corpus: Corpus[Pair] | Corpus[str]
    encoded: EncodedCorpus
    validation: Validation  # the same batches in training and at its end
