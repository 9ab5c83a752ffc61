"""Groups of options that several commands share. Typer reads a command's parameters one by one and knows no groups."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

__all__ = ["Command", "option", "options_for"]

Command: TypeAlias = Callable[..., None]


def option(name: str, annotation: Any, default: object = None) -> inspect.Parameter:
    """Returns a parameter of a command that Typer makes an option of."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def options_for(
    parameter: str, options: Sequence[inspect.Parameter], make: Callable[..., object]
) -> Callable[[Command], Command]:
    """Returns a decorator that puts `options` in the place of the parameter with the name `parameter`.

    The command gets there what `make` returns. `make` gets the values of the options as keyword arguments.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        parameters: list[inspect.Parameter] = []
        for each in signature.parameters.values():
            parameters += options if each.name == parameter else [each]

        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            values = {each.name: given.pop(each.name) for each in options}
            command(**given, **{parameter: make(**values)})

        with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return with_options

    return decorate
