"""`dragoman config`: every key of a server's configuration or of a recipe, with its default and its meaning."""

import enum
from typing import Annotated

import typer

from dragoman.cli.options import examples
from dragoman.cli.output import write_text
from dragoman.common.errors import UsageError
from dragoman.common.extras import require_extra

__all__ = ["EPILOG", "config"]

EPILOG = examples(
    "dragoman config server > server.toml  # a file to change, for dragoman serve --config",
    "dragoman config server engine  # one section",
    "dragoman config recipe training",
    "dragoman config recipe corpus --kind tsv",
)

_SECTIONS = {
    "server": ("server", "models", "engine", "admission", "security", "logging", "tracing"),
    "recipe": ("corpus", "tokenizer", "model", "training", "quality"),
}


class Subject(enum.StrEnum):
    """The configuration that the keys belong to."""

    SERVER = "server"
    RECIPE = "recipe"


def _complete_section(context: typer.Context, incomplete: str) -> list[str]:
    names = _SECTIONS.get(str(context.params.get("subject", "")), ())
    return [name for name in names if name.startswith(incomplete)]


def config(
    subject: Annotated[
        Subject,
        typer.Argument(
            metavar="server|recipe", help="server: the configuration of `serve`. recipe: a recipe of `train`."
        ),
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
            metavar="KIND",
            help="With recipe: kind of the corpus, such as parallel, tsv, jsonl, parquet or text.",
        ),
    ] = "parallel",
) -> None:
    """Print every key of a configuration with its default and its meaning, as a TOML file of comments.

    docs/configuration.md holds the same.
    """
    from dragoman.common.settings_reference import as_toml, sections_of
    from dragoman.server.config import ServerSettings

    if subject is Subject.RECIPE:
        require_extra("train")
        from dragoman.model.recipe import Recipe

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
