"""Training, from a recipe to a run folder."""

import shutil
import sys
from pathlib import Path

import torch
from rich.console import Console

from common.errors import OperationError, UsageError
from common.files import atomic_write, check_writable
from model.corpora.load import load_corpus
from model.loss import mean_loss
from model.recipe import Recipe
from model.run import (
    CHECKPOINT_FOLDER,
    METRICS_FILE,
    RECIPE_FILE,
    RECORD_FILE,
    TENSORBOARD_FOLDER,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Run,
    read_weights,
    save_run,
)
from model.tokenizer import train_tokenizer
from model.training.checkpoints import CheckpointKeeper, average_weights
from model.training.data import EncodedCorpus, encode_corpus
from model.training.hardware import choose_device, choose_precision, keep_freed_memory, set_threads
from model.training.loop import fit
from model.training.measure import measure
from model.training.progress import Reporter
from model.training.summary import TrainingSummary, print_summary
from model.transformer import LanguageModel, TranslationModel, build_model

__all__ = ["TrainingSummary", "train"]

_WIDE = 160  # lines in a file or a pipe are not cut
_RUN_FILES = (RECORD_FILE, WEIGHTS_FILE, TOKENIZER_FILE, METRICS_FILE, TENSORBOARD_FOLDER, CHECKPOINT_FOLDER)


def train(
    recipe: Recipe, out: Path, *, data: Path | None = None, show_progress: bool = True
) -> TrainingSummary:
    """Train by `recipe` and leave a run in the folder `out`, in place of an earlier run there.

    Args:
        recipe: what to train, on what, and for how long.
        out: the run folder; `model.run` says what it holds.
        data: folder of the corpus, in place of the recipe's own.
        show_progress: talk on standard error.

    Raises:
        UsageError: `out` holds something else than a run; the corpus or the recipe is at fault.
        OperationError: `out` cannot be written, or the loss is not finite.
    """
    recipe = recipe.with_data(data)
    _make_room(out)
    atomic_write(out / RECIPE_FILE, recipe.model_dump_json(indent=2) + "\n")
    device, num_threads = choose_device(recipe.training.device), set_threads(recipe.training.num_threads)
    keep_freed_memory()
    width = None if sys.stderr.isatty() else _WIDE
    console = Console(stderr=True, quiet=not show_progress, width=width, highlight=False)
    with Reporter(out, console) as reporter:
        reporter.phase("reading the corpus")
        corpus = load_corpus(recipe)
        reporter.phase("training the tokenizer")
        tokenizer = train_tokenizer(recipe.tokenizer, corpus.texts(), recipe.task)
        reporter.phase("encoding the corpus")
        encoded = encode_corpus(corpus, tokenizer, recipe)

        torch.manual_seed(recipe.seed)
        model = build_model(recipe.dimensions(tokenizer.get_vocab_size())).to(device)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        precision = "fp32" if choose_precision(recipe.training.precision, device) == torch.float32 else "bf16"
        reporter.say(
            f"{recipe.name}: {num_parameters:,} parameters, {encoded.size} to learn from; "
            f"{precision} on {device.type if device.type != 'cpu' else f'{num_threads} CPU threads'}"
        )
        keeper = CheckpointKeeper(out / CHECKPOINT_FOLDER, recipe.training.average_checkpoints)
        reporter.phase("training")
        outcome = fit(model, encoded, recipe.training, seed=recipe.seed, keeper=keeper, reporter=reporter)

        reporter.phase("measuring quality")
        metrics = {"validation_loss": _take_best_weights(model, encoded, keeper, recipe)}
        metrics |= measure(model.eval(), tokenizer, corpus, recipe.training.num_quality_examples)
        reporter.record(outcome.num_steps, metrics)
        save_run(Run(out, model.cpu(), tokenizer, recipe, outcome.num_steps, metrics))
    summary = TrainingSummary(out, num_parameters, outcome, encoded.num_too_long, metrics)
    print_summary(summary, console)
    return summary


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


def _make_room(out: Path) -> None:
    """Make `out` an empty run folder. Only what is known to be a run is ever removed.

    Raises:
        UsageError: it holds something else.
        OperationError: it cannot be written.
    """
    check_writable(out)
    if (out / RECIPE_FILE).is_file():
        try:
            for name in _RUN_FILES:
                path = out / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            raise OperationError(f"cannot replace the run in {out}: {error.strerror}") from error
    elif others := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
        raise UsageError(f"{out} holds no run but {others[0]!r}: give --out an empty or a new folder")
