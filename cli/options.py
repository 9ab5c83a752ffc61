"""Options that several commands share, each written once, and what the shell may complete them with."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import dragoman.model
from dragoman.common.errors import DragomanError

__all__ = [
    "DEFAULT_TARGET",
    "DEFAULT_TIMEOUT_S",
    "Bundle",
    "Data",
    "Inputs",
    "Json",
    "Model",
    "ModelOrBundle",
    "ModelVersion",
    "Overrides",
    "Priority",
    "PriorityName",
    "SkipBad",
    "Target",
    "Timeout",
    "examples",
    "recipe_names",
]

DEFAULT_TARGET = "localhost:8500"
DEFAULT_TIMEOUT_S = 60.0

_COMPLETION_TIMEOUT_S = 0.5


def recipe_names() -> list[str]:
    """The built-in recipes. `dragoman.model.recipe.builtin_recipes` says the same, but imports torch to say it."""
    return sorted(
        path.stem for root in dragoman.model.__path__ for path in Path(root, "recipes").glob("*.toml")
    )


def complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the models that the server at `--target` holds; none when it does not answer at once."""
    from dragoman.client.blocking import Client
    from dragoman.client.channel import ChannelSettings

    target = context.params.get("target") or DEFAULT_TARGET
    try:
        # The environment's credentials: options of the line that is being typed are not known here.
        with Client(target, settings=ChannelSettings(max_attempts=1)) as client:
            names = {held.name for held in client.models(timeout_s=_COMPLETION_TIMEOUT_S)}
    except DragomanError:
        return []
    return sorted(name for name in names if name.startswith(incomplete))


def complete_recipe(incomplete: str) -> list[str]:
    """Names of built-in recipes."""
    return [name for name in recipe_names() if name.startswith(incomplete)]


def examples(*lines: str) -> str:
    """A help epilog that lists commands to copy; what follows a `#` is shown above its command."""
    shown = ["[bold]Examples[/bold]"]
    for line in lines:
        command, _, remark = line.replace("[", "\\[").partition("  # ")
        shown += [f"[dim]# {remark}[/dim]"] if remark else []
        shown.append(f"[cyan]{command}[/cyan]")
    return "\n".join(shown)


def _model(show_default: bool | str = True) -> Any:
    return typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        autocompletion=complete_model,
        help="Name of the model. `dragoman models` lists the names.",
        show_default=show_default,
        rich_help_panel="Server",
    )


Target = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="The server to call.", rich_help_panel="Server")
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", metavar="SECONDS", min=0.0, help="Time limit of a call.", rich_help_panel="Server"
    ),
]
Model = Annotated[str, _model()]
ModelOrBundle = Annotated[str | None, _model(show_default="required without --bundle")]
Bundle = Annotated[
    Path | None,
    typer.Option(
        metavar="BUNDLE",
        help="Load the bundle in this folder (MODELS/NAME/VERSION) into this process. No server is needed.",
        show_default=False,
        rich_help_panel="Without a server",
    ),
]
ModelVersion = Annotated[
    str,
    typer.Option(
        metavar="VERSION",
        help="Version of the model.",
        show_default="the highest one",
        rich_help_panel="Server",
    ),
]
PriorityName = Literal["high", "normal", "low"]  # importing the client library's would take time
Priority = Annotated[
    PriorityName,
    typer.Option(
        "--priority",
        help="How soon the calls get their turn while calls wait for the model.",
        rich_help_panel="Server",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object a line, with everything that the server returns.",
        rich_help_panel="Output",
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A file with one input in each line. - is standard input.",
        show_default="standard input",
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Skip a line that is too long or not UTF-8, and go on. The output has an empty line in its place "
        "(with --json: the error). Standard error names each skipped line and ends with their number.",
        rich_help_panel="Output",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder with the files of the recipe's corpus. Nothing is downloaded then.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, such as training.max_steps=500. May be repeated.",
        show_default=False,
    ),
]
