"""The classes of all commands of `dragoman`."""

import inspect
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from dragoman.cli.output import is_unicode

__all__ = ["Command", "CommandGroup"]


class Command(TyperCommand):
    """A command whose text arguments are UTF-8, and whose help is wrapped for the reader's terminal.

    The interpreter hands on other bytes as lone surrogates, which no message and no terminal takes. Paths may
    have them: a file's name is bytes.
    """

    def __init__(self, *arguments: Any, help: str | None = None, **settings: Any) -> None:  # noqa: A002
        """Arguments as Typer's own class has them; the lines of a paragraph of `help` become one."""
        super().__init__(*arguments, help=_joined(help), **settings)

    def invoke(self, ctx: Any) -> Any:  # Typer's own context is of a private module
        """Run the command.

        Raises:
            BadParameter: an argument is not UTF-8.
        """
        _check_texts(ctx, self.params)
        return super().invoke(ctx)


class CommandGroup(TyperGroup):
    """Commands with a name in common; `Command` says the rest."""

    def __init__(self, *arguments: Any, help: str | None = None, **settings: Any) -> None:  # noqa: A002
        """As `Command`."""
        super().__init__(*arguments, help=_joined(help), **settings)

    def invoke(self, ctx: Any) -> Any:
        """As `Command`."""
        _check_texts(ctx, self.params)
        return super().invoke(ctx)


def _joined(help_text: str | None) -> str:
    paragraphs = inspect.cleandoc(help_text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _check_texts(context: Any, parameters: Sequence[Any]) -> None:
    for parameter in parameters:
        value = context.params.get(parameter.name or "")
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and not text.isascii() and not is_unicode(text):
                assert isinstance(parameter, TyperArgument | TyperOption)
                hint = parameter.get_error_hint()
                raise typer.BadParameter(f"{text!r} is not UTF-8", ctx=context, param_hint=hint)
