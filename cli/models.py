"""`dragoman models`: what a server holds, and changes of it."""

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated

import typer

from dragoman.cli import fetch
from dragoman.cli.command import Command, CommandGroup
from dragoman.cli.credentials import with_credentials
from dragoman.cli.options import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, Target, Timeout, examples
from dragoman.cli.output import note, report_console, write_json
from dragoman.client.credentials import Credentials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table
    from rich.text import Text

    from dragoman.client import ModelInfo, ModelList, NotLoadedModel

__all__ = ["EPILOG", "app", "models_table", "not_loaded_table", "versions_table"]

EPILOG = examples(
    "dragoman models",
    "dragoman models --target gpu-server:8500 --json  # for a script",
    "dragoman models load dates  # the highest version in the server's models folder",
    "dragoman models alias dates canary 2 --share 10",
)
CHANGE_TIMEOUT_S = 600.0
"""A large model takes minutes until it is loaded and checked."""

app = typer.Typer(cls=CommandGroup, invoke_without_command=True)
app.command(cls=Command, epilog=fetch.EPILOG)(fetch.fetch)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.", show_default=False)]


@app.callback()
@with_credentials
def models(
    context: typer.Context,
    target: Target = DEFAULT_TARGET,
    *,
    as_json: _Json = False,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    credentials: Credentials,
) -> None:
    """List the models of a server with their limits and measured quality, the states of their versions, and what the
    server could not load; or load and unload versions and name them.
    """
    given = (target, as_json, timeout_s, credentials)
    if context.invoked_subcommand is None:
        _list(target, as_json=as_json, timeout_s=timeout_s, credentials=credentials)
    elif given != (DEFAULT_TARGET, False, DEFAULT_TIMEOUT_S, Credentials.from_environment()):
        raise typer.BadParameter(f"options come after the command {context.invoked_subcommand!r}")


@app.command("list", cls=Command, epilog=examples("dragoman models list --json"))
@with_credentials
def list_models(
    target: Target = DEFAULT_TARGET,
    *,
    as_json: _Json = False,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    credentials: Credentials,
) -> None:
    """List the models of a server, the states of their versions, and what the server could not load."""
    _list(target, as_json=as_json, timeout_s=timeout_s, credentials=credentials)


def _list(target: str, *, as_json: bool, timeout_s: float, credentials: Credentials) -> None:
    from dragoman.client import Client

    with Client(target, timeout_s=timeout_s, credentials=credentials) as client:
        held = client.models()
    if as_json:
        write_json([dataclasses.asdict(model) for model in held])
        for each in held.not_loaded:
            note(f"not loaded: {_full_name(each)}: {each.reason}: {each.description}")
        return
    console = report_console()
    console.print(models_table(held))
    if held.aliases or any(each.state not in {"serving", "failed"} for each in held.versions):
        console.print(versions_table(held))
    if held.not_loaded:
        console.print(not_loaded_table(held.not_loaded))


@app.command(cls=Command, epilog=examples("dragoman models load dates", "dragoman models load dates 2"))
@with_credentials
def load(
    name: _Name,
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION", show_default="the highest one", help="Number in the server's models folder."
        ),
    ] = "",
    target: Target = DEFAULT_TARGET,
    *,
    timeout_s: Timeout = CHANGE_TIMEOUT_S,
    credentials: Credentials,
) -> None:
    """Have the server load and check a version while it serves on. The command returns when the version takes calls.

    Without VERSION, a server that serves the latest versions alone then unloads the lower ones without an alias. If the
    version cannot be served, nothing changes. The server's setting `models.allow_changes` has to be on.
    """
    from dragoman.client import Client

    with Client(target, timeout_s=timeout_s, credentials=credentials) as client:
        client.load_model(name, version)


@app.command(cls=Command, epilog=examples("dragoman models unload dates 1"))
@with_credentials
def unload(
    name: _Name,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", show_default="all versions", help="Number of the version.")
    ] = "",
    target: Target = DEFAULT_TARGET,
    *,
    timeout_s: Timeout = CHANGE_TIMEOUT_S,
    credentials: Credentials,
) -> None:
    """Have the server unload a version. It takes no new calls. The command returns when its running calls have ended.

    A version that an alias names stays loaded. The server's setting `models.allow_changes` has to be on.
    """
    from dragoman.client import Client

    with Client(target, timeout_s=timeout_s, credentials=credentials) as client:
        client.unload_model(name, version)


@app.command(
    cls=Command,
    epilog=examples(
        "dragoman models alias dates stable 1",
        "dragoman models alias dates canary 2 --share 10  # a tenth of the calls without a version",
        "dragoman models alias dates canary --delete",
    ),
)
@with_credentials
def alias(
    name: _Name,
    alias_name: Annotated[
        str, typer.Argument(metavar="ALIAS", help="What calls have as a version.", show_default=False)
    ],
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION",
            help="Number of a version that is served.",
            show_default="required without --delete",
        ),
    ] = "",
    target: Target = DEFAULT_TARGET,
    *,
    share: Annotated[
        float,
        typer.Option(
            metavar="PERCENT",
            min=0.0,
            max=100.0,
            help="Share of the calls without a version that this version gets.",
        ),
    ] = 0.0,
    delete: Annotated[bool, typer.Option("--delete", help="Let the alias name nothing any more.")] = False,
    timeout_s: Timeout = CHANGE_TIMEOUT_S,
    credentials: Credentials,
) -> None:
    """Have an alias name a version. Calls may have an alias in place of a version.

    The server's setting `models.allow_changes` has to be on. A server that starts anew knows no aliases.
    """
    from dragoman.client import Client

    if delete == bool(version):
        raise typer.BadParameter("give either a VERSION or --delete")
    with Client(target, timeout_s=timeout_s, credentials=credentials) as client:
        if delete:
            client.delete_alias(name, alias_name)
        else:
            client.set_alias(name, alias_name, version, traffic_percent=share)


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


def versions_table(held: "ModelList") -> "Table":
    """One row for each version that the server knows, with its state and its aliases."""
    from rich import box
    from rich.table import Table

    aliases: dict[tuple[str, str], list[str]] = defaultdict(list)
    for alias in held.aliases:
        share = f" ({alias.traffic_percent:g} %)" if alias.traffic_percent else ""
        aliases[alias.model, alias.version].append(f"{alias.alias}{share}")
    table = Table(box=box.SIMPLE_HEAD, title="Versions", title_justify="left")
    table.add_column("Version", overflow="fold")
    table.add_column("State", no_wrap=True)
    table.add_column("Aliases", overflow="fold")
    for each in held.versions:
        names = ", ".join(aliases[each.model, each.version])
        table.add_row(_text(f"{each.model}/{each.version}"), each.state, _text(names))
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
        table.add_row(_text(_full_name(each)), each.reason.replace("_", " "), _text(each.description))
    return table


def _full_name(model: "NotLoadedModel") -> str:
    name = f"{model.name}/{model.version}" if model.version else model.name
    return name if name.isprintable() else repr(name)


def _text(text: str) -> "Text":
    """Returns `text` for a table, as it is: a name may hold what rich takes for markup."""
    from rich.text import Text

    return Text(text)
