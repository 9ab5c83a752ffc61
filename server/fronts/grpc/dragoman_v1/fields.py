"""The names that the fields of a `Call` have in dragoman.v1: a refusal names the field that the caller sent."""

import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from dragoman.server.errors import InvalidRequest

__all__ = ["naming_fields"]

Method: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]

_LIST = re.compile(r"(\w+)(?:\[(\d+)])?")


def naming_fields(**paths: str) -> Callable[[Method], Method]:
    """Returns a decorator for a method of a service, which puts the message's names to the fields of a refusal.

    `paths` has, for a list of `Call` or `ScoringCall`, the path of its element number {} in the message. A list
    without a path has the same name in both.
    """

    def name_of(field: str) -> str:
        match = _LIST.fullmatch(field)
        path = paths.get(match[1]) if match else None
        if match is None or path is None:
            return field
        # The list as a whole is what the path begins with.
        return path.partition("[")[0] if match[2] is None else path.format(match[2])

    def decorated(method: Method) -> Method:
        @functools.wraps(method)
        async def named(servicer: Any, request: Any, context: Any) -> Any:
            try:
                return await method(servicer, request, context)
            except InvalidRequest as error:
                error.rename_fields(name_of)
                raise

        return named

    return decorated
