"""`dragoman config`: every key of a server's configuration or of a recipe, with its default and its meaning."""

import enum
from typing import Annotated

import typer

from client.cli.options import examples
from client.cli.output import write_text
from common.errors import UsageError

__all__ = ["EPILOG", "config"]

EPILOG = examples(
    "dragoman config server > server.toml  # a file to change, for dragoman serve --config",
    "dragoman config server engine  # one section",
    "dragoman config recipe training",
    "dragoman config recipe corpus --kind tsv",
)

_SECTIONS = {
    "server": ("server", "models", "engine", "logging"),
    "recipe": ("corpus", "tokenizer", "model", "training"),
}


class Subject(enum.StrEnum):
    """Whose keys."""

    SERVER = "server"
    RECIPE = "recipe"


def _complete_section(context: typer.Context, incomplete: str) -> list[str]:
    names = _SECTIONS.get(str(context.params.get("subject", "")), ())
    return [name for name in names if name.startswith(incomplete)]


def config(
    subject: Annotated[
        Subject,
        typer.Argument(metavar="server|recipe", help="The configuration of `serve`, or a recipe of `train`."),
    ],
    section: Annotated[
        str | None,
        typer.Argument(
            metavar="SECTION",
            help="One section, such as engine or training.",
            show_default="all",
            autocompletion=_complete_section,
        ),
    ] = None,
    *,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="With recipe: the kind of corpus: parallel, tsv, jsonl, parquet, text, ..."
        ),
    ] = "parallel",
) -> None:
    """Print every key with its default and its meaning, as a TOML file whose keys are comments.

    The same is a page: docs/settings.md.
    """
    from common.settings_reference import as_toml, sections_of
    from server.config import ServerSettings

    if subject is Subject.RECIPE:
        from model.recipe import Recipe

        sections = sections_of(Recipe)
    else:
        sections = sections_of(ServerSettings)
    kinds = [each.form for each in sections if each.form]
    if subject is Subject.RECIPE and kind not in kinds:
        raise UsageError(f"--kind {kind!r} is no kind of corpus: it is one of {', '.join(kinds)}")
    chosen = [
        each for each in sections if each.form in {"", kind} and (section is None or each.name == section)
    ]
    if not chosen:
        known = ", ".join(dict.fromkeys(each.name for each in sections if each.name))
        raise UsageError(f"{subject.value} has no section {section!r}: it has {known}")
    write_text(as_toml(chosen))
