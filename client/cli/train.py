"""`dragoman train`: from a recipe to a run folder."""

from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import Data, Overrides, complete_recipe, examples, recipe_names
from client.cli.output import note

__all__ = ["EPILOG", "train"]

EPILOG = examples(
    "dragoman train dates --out runs/dates",
    "dragoman train multi30k --out runs/multi30k --data ~/multi30k",
    "dragoman train my-recipe.toml --out runs/mine --set training.max_minutes=30 --set model.width=256",
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
        typer.Option(metavar="DIR", help="Folder for the run: weights, metrics, checkpoints, TensorBoard."),
    ],
    data: Data = None,
    overrides: Overrides = None,
) -> None:
    """Train a model by a recipe and leave a run folder, ready for `dragoman export`."""
    from model.recipe import load_recipe
    from model.training.train import train as run_training

    run_training(load_recipe(recipe, overrides or ()), out, data=data)
    note(f"next: dragoman export {out} --out models/{out.name}/1")
