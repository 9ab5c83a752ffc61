"""The models folder of a running server: which versions it serves, and how that changes. In the server process alone.

One change is made at a time. A version is loaded, checked and served by all fronts before another one is drained for
it; a version that cannot be served changes nothing, and the catalog says why.
"""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from dragoman.common.errors import DragomanError
from dragoman.server.errors import (
    FailedChange,
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    ModelsError,
    NotLoadedReason,
)
from dragoman.server.models.catalog import Catalog, VersionState, VersionStatus
from dragoman.server.models.discovery import UNAVAILABLE, NotLoaded, discover
from dragoman.server.models.registry import Registry
from dragoman.server.models.routes import Alias, alias_problem
from dragoman.server.models.version_states import VersionStates

__all__ = ["Engine", "Repository"]

_WHOLE_PERCENT = 100.0

_log = structlog.get_logger(__name__)


class Engine(Protocol):
    """What loads and unloads versions in a running server."""

    async def load_version(self, name: str, version: str) -> None:
        """Load and check a version; returns when all fronts have it.

        Raises:
            DragomanError: it cannot be served, and nothing has changed.
        """

    async def unload_version(self, name: str, version: str) -> None:
        """Drain a version in all fronts, and give up what it takes."""


class Repository:
    """Changes what is served, one change at a time.

    Attributes:
        show: called with the catalog after each change of it.
    """

    def __init__(self, directory: Path, engine: Engine, *, serves_all: bool) -> None:
        """Nothing is known before `begin`. `serves_all`: several versions of a model stay beside each other."""
        self.show: Callable[[Catalog], object] = lambda _: None
        self._directory = directory
        self._serves_all = serves_all
        self._engine = engine
        self._states = VersionStates()
        self._turn = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()

    async def begin(self, registry: Registry) -> None:
        """Take over what was loaded at the server's start."""
        served = [VersionStatus(each.name, each.version, VersionState.SERVING) for each in registry.models]
        failed = [VersionStatus.of_not_loaded(each) for each in registry.not_loaded]
        self._states = VersionStates([*failed, *served])
        await self.look_at_folders()
        self._show()

    @property
    def catalog(self) -> Catalog:
        """What there is at this moment."""
        return self._states.catalog()

    # Changes that the models folder asks for.

    def is_news(self, folder: Path) -> bool:
        """Whether a version that lies in its folder may be served without anybody asking for it."""
        return self._states.is_news(folder.parent.name, folder.name, all_versions=self._serves_all)

    def why_failed(self, folder: Path) -> str:
        """The reason for which a version could not be served; "" where it could, or was not tried."""
        return self._states.reason(folder.parent.name, folder.name)

    async def take_up(self, folder: Path, *, retry_s: float) -> None:
        """Serve a version, and the latest alone where the settings say so.

        Where this server cannot have the version now, the state says that it is tried again after `retry_s`.

        Raises:
            FailedChange: it cannot be served; what was served before is served on.
        """
        await self._in_turn(lambda: self._take_up(folder, retry_s))

    async def refuse(self, folder: Path, reason: NotLoadedReason, description: str) -> None:
        """Say that a version is not served, and why, unless it is."""
        not_loaded = NotLoaded.of(self._directory, folder, reason, description)
        await self._in_turn(lambda: self._refuse(VersionStatus.of_not_loaded(not_loaded)))

    # Changes that callers ask for.

    async def load(self, name: str, version: str = "") -> None:
        """Serve a version; without one, the highest that lies in the folder. Does nothing where it is served already.

        Where the settings say that only the latest version is served, a load without a version then drains the lower
        ones that have no alias.

        Raises:
            ModelNotFound: the models folder has no such version.
            FailedChange: the version cannot be served; what was served before is served on.
        """
        await self._in_turn(lambda: self._load(name, version))

    async def unload(self, name: str, version: str = "") -> None:
        """Drain and unload a version; without one, all versions of the model.

        Raises:
            ModelNotFound: it is not served.
            FailedChange: an alias names it.
        """
        await self._in_turn(lambda: self._unload(name, version))

    async def set_alias(self, name: str, alias: str, version: str, traffic_percent: float) -> None:
        """Let an alias name a version that is served, and get a share of the calls without a version.

        Raises:
            InvalidRequest: the alias cannot be a name, or the shares of the model are more than 100 percent.
            ModelNotFound: the version is not served.
        """
        await self._in_turn(lambda: self._set_alias(name, alias, Alias(version, traffic_percent)))

    async def delete_alias(self, name: str, alias: str) -> None:
        """Let an alias name nothing any more.

        Raises:
            ModelNotFound: there is no such alias.
        """
        await self._in_turn(lambda: self._delete_alias(name, alias))

    async def close(self) -> None:
        """Give up the changes that wait, and the one that is being made."""
        for change in list(self._changes):
            change.cancel()
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def _in_turn(self, change: Callable[[], Awaitable[None]]) -> None:
        """Make a change once those before it are made. It is made also where its caller leaves."""

        async def make() -> None:
            async with self._turn:
                await change()

        task = asyncio.create_task(make())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its caller may have left
        await asyncio.shield(task)

    async def _load(self, name: str, version: str) -> None:
        folders = [each for each in await self.look_at_folders() if each.parent.name == name]
        wanted = [each for each in folders if version in {"", each.name}]
        if not wanted:
            requested = f"{name}/{version}" if version else name
            available = [f"{name}/{each.name}" for each in folders]
            raise ModelNotFound(requested, available, "it is not in the models folder")
        if self._states.state(name, wanted[0].name) is not VersionState.SERVING:
            await self._bring_up(wanted[0])
        if not version and not self._serves_all:
            await self._drain_superseded(name)

    async def _unload(self, name: str, version: str) -> None:
        serving = [each for each in self._states.serving(name) if version in {"", each}]
        if not serving:
            raise ModelNotFound(f"{name}/{version}" if version else name, self._served())
        routes = self._states.routes(name)
        for each in serving:
            if aliases := routes.names_of(each):
                raise FailedChange(
                    f"the alias {aliases[0]!r} names {name}/{each}: let it name another version, or delete it, first"
                )
        for each in serving:
            await self._drain(name, each)

    async def _set_alias(self, name: str, alias: str, to: Alias) -> None:
        percent, others = to.traffic_percent, self._states.routes(name).aliases
        if problem := alias_problem(alias):
            raise InvalidRequest([FieldViolation("alias", f"{alias[:64]!r}: {problem}")])
        if not (math.isfinite(percent) and 0 <= percent <= _WHOLE_PERCENT):
            raise InvalidRequest([FieldViolation("traffic_percent", f"{percent} is not from 0 to 100")])
        total = percent + sum(each.traffic_percent for known, each in others.items() if known != alias)
        if total > _WHOLE_PERCENT + 1e-6:  # shares like 33.4 need not add up to the last bit
            problem = f"with {percent}, the aliases of {name} have {total:g} percent of its traffic"
            raise InvalidRequest([FieldViolation("traffic_percent", problem)])
        if self._states.state(name, to.version) is not VersionState.SERVING:
            raise ModelNotFound(f"{name}/{to.version}", self._served())
        self._states.set_alias(name, alias, to)
        _log.info("alias_set", model=name, alias=alias, version=to.version, traffic_percent=percent)
        self._show()

    async def _delete_alias(self, name: str, alias: str) -> None:
        aliases = self._states.routes(name).aliases
        if alias not in aliases:
            raise ModelNotFound(f"{name}/{alias}", [f"{name}/{each}" for each in sorted(aliases)])
        self._states.delete_alias(name, alias)
        _log.info("alias_deleted", model=name, alias=alias)
        self._show()

    # Steps of changes.

    async def _take_up(self, folder: Path, retry_s: float) -> None:
        name = folder.parent.name
        if self._states.state(name, folder.name) is not VersionState.SERVING:
            await self._bring_up(folder, retry_s)
        if not self._serves_all:
            await self._drain_superseded(name)

    async def _refuse(self, status: VersionStatus) -> None:
        if self._states.state(status.name, status.version) is not VersionState.SERVING:
            self._change(status)

    async def _bring_up(self, folder: Path, retry_s: float | None = None) -> None:
        """Serve a version beside those that are served; `retry_s` as `take_up` has it, None: nobody tries again.

        Raises:
            FailedChange: it cannot be served.
        """
        name, version = folder.parent.name, folder.name
        self._change(VersionStatus(name, version, VersionState.LOADING))
        try:
            _check_inside(self._directory, folder)
            await self._engine.load_version(name, version)
        except Exception as error:
            status = VersionStatus.of_not_loaded(NotLoaded.of_error(self._directory, folder, error))
            if status.reason == UNAVAILABLE and retry_s is not None:
                again = f"{status.description}; it is tried again in {retry_s:g} s"
                status = msgspec.structs.replace(status, description=again)
            self._change(status)
            raise FailedChange(f"{name}/{version} cannot be served: {status.description}") from error
        self._change(VersionStatus(name, version, VersionState.SERVING))

    async def _drain_superseded(self, name: str) -> None:
        for version in self._states.superseded(name):
            await self._drain(name, version)

    async def _drain(self, name: str, version: str) -> None:
        self._change(VersionStatus(name, version, VersionState.DRAINING))
        description = ""
        try:
            await self._engine.unload_version(name, version)
        except DragomanError as error:
            description = str(error)
            raise FailedChange(
                f"{name}/{version} takes no calls any more, but was not unloaded: {error}"
            ) from error
        finally:
            self._change(VersionStatus(name, version, VersionState.UNLOADED, description=description))

    async def look_at_folders(self) -> Sequence[Path]:
        """The folders of all versions, highest first; they are in the catalog from now on."""
        folders = await asyncio.to_thread(_version_folders, self._directory)
        if self._states.note_folders({(each.parent.name, each.name) for each in folders}):
            self._show()
        return folders

    def _change(self, status: VersionStatus) -> None:
        if self._states.change(status):
            log = _log.warning if status.state is VersionState.FAILED else _log.info
            why = {"reason": status.reason} if status.reason else {}
            why |= {"description": status.description} if status.description else {}
            log("version", model=status.name, version=status.version, state=status.state.value, **why)
        self._show()

    def _show(self) -> None:
        self.show(self._states.catalog())

    def _served(self) -> list[str]:
        statuses = self._states.catalog().versions
        return [f"{each.name}/{each.version}" for each in statuses if each.state is VersionState.SERVING]


def _version_folders(directory: Path) -> list[Path]:
    """All version folders of a models folder, of each model the highest first. A call names what is in this list."""
    try:
        found, _ = discover(directory)
    except ModelsError:  # everything has been moved away: what is served is served on
        return []
    return [folder for versions in found for folder in versions]


def _check_inside(directory: Path, folder: Path) -> None:
    """Refuse a folder that is a link out of the models folder.

    Raises:
        ModelsError: it is one.
    """
    real = Path(os.path.realpath(folder))
    if not real.is_relative_to(os.path.realpath(directory)):
        raise ModelsError(f"{folder} is a link out of the models folder")
