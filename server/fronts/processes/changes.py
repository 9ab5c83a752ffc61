"""Changes of what is served that callers ask a further front for: the server process makes them.

A failure comes back as data and is raised in the front as what it was.
"""

import asyncio
import itertools
from collections.abc import Callable

import structlog

from dragoman.server.errors import (
    MAX_LISTED,
    Draining,
    EngineError,
    EngineUnavailable,
    FailedChange,
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    PermissionDenied,
    RequestError,
)
from dragoman.server.fronts.processes.messages import Change, ChangeFailed, ChangeKind, ChangeMade, MakeChange
from dragoman.server.models.changes import ModelChanges

__all__ = ["ForwardedChanges", "make_change"]

_OTHERS: dict[str, Callable[[str], RequestError]] = {
    error.__name__: error for error in (EngineUnavailable, PermissionDenied)
}

_log = structlog.get_logger(__name__)


class ForwardedChanges:
    """`ModelChanges` of a further front. On one event loop."""

    def __init__(self, send: Callable[[MakeChange], object]) -> None:
        """`send` hands a message to the server process."""
        self._send = send
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[None]] = {}

    async def load(self, name: str, version: str = "") -> None:
        """As `Repository.load`."""
        await self._ask(Change(ChangeKind.LOAD, name, version))

    async def unload(self, name: str, version: str = "") -> None:
        """As `Repository.unload`."""
        await self._ask(Change(ChangeKind.UNLOAD, name, version))

    async def set_alias(self, name: str, alias: str, version: str, traffic_percent: float) -> None:
        """As `Repository.set_alias`."""
        await self._ask(Change(ChangeKind.SET_ALIAS, name, version, alias, traffic_percent))

    async def delete_alias(self, name: str, alias: str) -> None:
        """As `Repository.delete_alias`."""
        await self._ask(Change(ChangeKind.DELETE_ALIAS, name, "", alias))

    def receive(self, made: ChangeMade) -> None:
        """Take the end of a change that the server process has made, or failed to make, for its caller."""
        future = self._open.get(made.number)
        if future is None or future.done():  # its caller has left
            return
        if made.failure is None:
            future.set_result(None)
        else:
            future.set_exception(_error(made.failure))

    async def _ask(self, change: Change) -> None:
        number = next(self._numbers)
        future = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(MakeChange(number, change))
            await future
        finally:
            del self._open[number]


async def make_change(changes: ModelChanges, request: MakeChange) -> ChangeMade:
    """Make a change in the server process; returns the answer to the front that asked for it."""
    change = request.change
    try:
        match change.kind:
            case ChangeKind.LOAD:
                await changes.load(change.name, change.version)
            case ChangeKind.UNLOAD:
                await changes.unload(change.name, change.version)
            case ChangeKind.SET_ALIAS:
                await changes.set_alias(change.name, change.alias, change.version, change.traffic_percent)
            case ChangeKind.DELETE_ALIAS:
                await changes.delete_alias(change.name, change.alias)
    except RequestError as error:
        return ChangeMade(request.number, _failure(error))
    except Exception:  # noqa: BLE001  a fault of ours: the front that waits for the answer must not wait for ever
        _log.exception("change_failed", model=change.name, version=change.version)
        return ChangeMade(request.number, ChangeFailed(EngineError.__name__, "a change failed"))
    return ChangeMade(request.number)


def _failure(error: RequestError) -> ChangeFailed:
    kind = type(error).__name__
    if isinstance(error, ModelNotFound):
        return ChangeFailed(
            kind, error.why, requested=error.requested, available=error.available[: MAX_LISTED + 1]
        )
    if isinstance(error, InvalidRequest):
        violations = tuple((each.field, each.description) for each in error.violations)
        return ChangeFailed(kind, "", violations=violations)
    return ChangeFailed(kind, str(error))


def _error(failure: ChangeFailed) -> RequestError:
    match failure.kind:
        case "ModelNotFound":
            return ModelNotFound(failure.requested, failure.available, failure.message)
        case "InvalidRequest":
            return InvalidRequest([FieldViolation(*each) for each in failure.violations])
        case "FailedChange":
            return FailedChange(failure.message)
        case "Draining":
            return Draining()
        case kind:
            return _OTHERS.get(kind, EngineError)(failure.message)
