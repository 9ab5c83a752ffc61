"""`dragoman models`: what a server holds."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from dragoman.cli.options import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, Target, Timeout, examples
from dragoman.cli.output import note, report_console, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table
    from rich.text import Text

    from dragoman.client import ModelInfo, NotLoadedModel

__all__ = ["EPILOG", "models", "models_table", "not_loaded_table"]

EPILOG = examples(
    "dragoman models",
    "dragoman models --target gpu-server:8500 --json  # for a script",
)


def models(
    target: Target = DEFAULT_TARGET,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """List the models of a server with their limits and measured quality, and the models that it could not load."""
    from dragoman.client import Client

    with Client(target, timeout_s=timeout_s) as client:
        held = client.models()
    if as_json:
        write_json([dataclasses.asdict(model) for model in held])
        for each in held.not_loaded:
            note(f"not loaded: {_place(each)}: {each.reason}: {each.description}")
        return
    console = report_console()
    console.print(models_table(held))
    if held.not_loaded:
        console.print(not_loaded_table(held.not_loaded))


def models_table(held: "Sequence[ModelInfo]") -> "Table":
    """One row a model, of several lines: 80 columns hold no line for all."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, leading=1)
    table.add_column("Model", overflow="fold")
    table.add_column("Task", no_wrap=True)
    table.add_column("Parameters", justify="right", no_wrap=True)
    table.add_column("Max tokens", justify="right", no_wrap=True)
    table.add_column("Quality", overflow="fold")
    for model in held:
        table.add_row(
            _text(f"{model.name}/{model.version}"),
            f"{model.task}\n{model.precision}, {model.provider}",
            f"{model.num_parameters:,}",
            f"{model.max_input_tokens:,} in\n{model.max_output_tokens:,} out",
            _text("\n".join(f"{figure.metric} {figure.value:.4g}" for figure in model.quality)),
        )
    return table


def not_loaded_table(not_loaded: "Sequence[NotLoadedModel]") -> "Table":
    """One row for each folder that the server found and does not serve."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="Not loaded", title_justify="left")
    table.add_column("Model", overflow="fold")
    table.add_column("Reason", no_wrap=True)
    table.add_column("What is wrong", overflow="fold")
    for each in not_loaded:
        table.add_row(_text(_place(each)), each.reason.replace("_", " "), _text(each.description))
    return table


def _place(model: "NotLoadedModel") -> str:
    place = f"{model.name}/{model.version}" if model.version else model.name
    return place if place.isprintable() else repr(place)


def _text(text: str) -> "Text":
    """As it is: a name may hold what rich takes for markup."""
    from rich.text import Text

    return Text(text)
