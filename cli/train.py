"""`dragoman train`: from a recipe to a run folder."""

from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.exit_codes import EXIT_INTERRUPTED
from dragoman.cli.options import Data, Overrides, complete_recipe, examples, recipe_names
from dragoman.cli.output import note
from dragoman.common.errors import UsageError
from dragoman.common.extras import require_extra

__all__ = ["EPILOG", "train"]

EPILOG = examples(
    "dragoman train dates --out runs/dates",
    "dragoman train multi30k --out runs/multi30k --data ~/multi30k",
    "dragoman train my-recipe.toml --out runs/mine --set training.max_minutes=30 --set model.width=256",
    "dragoman train my-recipe.toml --out runs/mine --resume  # go on after a crash, a kill or Ctrl-C",
    "dragoman train my-recipe.toml --out runs/next --init runs/mine  # start from another run's weights",
    "torchrun --nproc-per-node 2 -m dragoman train multi30k --out runs/multi30k  # two processes",
)


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            autocompletion=complete_recipe,
            help=f"A built-in recipe ({', '.join(recipe_names())}) or the path of a TOML file.",
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder that the command writes the run to: weights, metrics, checkpoints, TensorBoard files.",
        ),
    ],
    data: Data = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the unfinished run in --out.", rich_help_panel="Start from"),
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="With --resume: continue although the recipe or a corpus file has changed since the run began.",
            rich_help_panel="Start from",
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Remove the run in --out, finished or not, and train from the beginning.",
            rich_help_panel="Start from",
        ),
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Start from the weights and the tokenizer of this finished run.",
            show_default=False,
            rich_help_panel="Start from",
        ),
    ] = None,
    new_tokenizer: Annotated[
        bool,
        typer.Option(
            "--new-tokenizer",
            help="With --init: train a new tokenizer. Tokens of both tokenizers keep their embedding.",
            rich_help_panel="Start from",
        ),
    ] = False,
) -> int:
    """Train a model by a recipe and write a run folder for `dragoman export`.

    SIGTERM and Ctrl-C save the state before they end training. A killed training loses at most the last
    training.state_interval_s seconds.
    """
    require_extra("train")
    from dragoman.model.errors import TrainingStopped
    from dragoman.model.recipe import load_recipe
    from dragoman.model.training.train import Beginning
    from dragoman.model.training.train import train as run_training

    _check_together(
        resume=resume, accept_changes=accept_changes, restart=restart, init=init, new=new_tokenizer
    )
    beginning = Beginning(
        resume=resume, accept_changes=accept_changes, restart=restart, init=init, new_tokenizer=new_tokenizer
    )
    try:
        run_training(load_recipe(recipe, overrides or ()), out, data=data, beginning=beginning)
    except TrainingStopped as stopped:
        if stopped.step is None:
            note("stopped before training began: there is nothing to resume")
        else:
            note(f"stopped at step {stopped.step:,}, all saved; the same command with --resume goes on")
        return EXIT_INTERRUPTED if stopped.interrupted else 0
    return 0


def _check_together(
    *, resume: bool, accept_changes: bool, restart: bool, init: Path | None, new: bool
) -> None:
    if resume and restart:
        raise UsageError("--resume goes on and --restart begins again: give one of them")
    if accept_changes and not resume:
        raise UsageError("--accept-changes is for --resume")
    if init and resume:
        raise UsageError(f"--init {init} is for a new run; --resume has its weights already")
    if new and not init:
        raise UsageError("--new-tokenizer is for --init")
