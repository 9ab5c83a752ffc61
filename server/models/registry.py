"""Which models a front has, by name and version, and how calls hold them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from dragoman.server.errors import ModelNotFound
from dragoman.server.models.catalog import Catalog, VersionState, VersionStatus
from dragoman.server.models.discovery import NotLoaded, log_not_loaded
from dragoman.server.models.routes import Routes, version_order
from dragoman.server.models.served_model import ServedModel
from dragoman.server.operations.metrics import Metrics

__all__ = ["Lease", "Registry", "announce_not_loaded"]

_NO_ROUTES = Routes()
_WHY_NOT = {
    VersionState.LOADING: "it is being loaded",
    VersionState.DRAINING: "it is being unloaded",
    VersionState.UNLOADED: "it was unloaded, or never loaded",
}


@dataclass(eq=False, slots=True)
class _Version:
    """A version of a model, and how many leases on it have not been returned."""

    model: ServedModel
    num_leases: int = 0
    is_removed: bool = False
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


class Lease:
    """Holds a version of a model until the end of the `with` block: it is not unloaded before.

    Attributes:
        model: the version.
    """

    __slots__ = ("_version", "model")

    def __init__(self, version: _Version) -> None:
        self.model = version.model
        self._version = version

    def __enter__(self) -> Self:
        self._version.num_leases += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        version = self._version
        version.num_leases -= 1
        if version.is_removed and not version.num_leases:
            version.is_over.set()


class Registry:
    """The versions that take calls, and the routes to them. On one event loop.

    Attributes:
        catalog: the state of everything as the server's repository shows it, also of what takes no calls.
        before_added: awaited with each version that comes while others are served, before it takes calls.
        when_added: called with each version that begins to take calls, before it does.
        when_changed: called after each change of what takes calls, and of the catalog.
        when_removed: called with each version that takes no calls any more, once its last lease is returned.
    """

    def __init__(self, models: Iterable[ServedModel] = (), not_loaded: Iterable[NotLoaded] = ()) -> None:
        self.catalog = Catalog(tuple(map(VersionStatus.of_not_loaded, not_loaded)))
        self.before_added: list[Callable[[ServedModel], Awaitable[object]]] = []
        self.when_added: list[Callable[[ServedModel], object]] = []
        self.when_changed: list[Callable[[], object]] = []
        self.when_removed: list[Callable[[ServedModel], object]] = []
        self._models: dict[str, dict[str, _Version]] = {}
        self._routes: dict[str, Routes] = {}
        for model in models:
            self.add(model)

    def lease(self, name: str, version: str = "", sticky_key: str | None = None) -> Lease:
        """Returns a lease on the version that a call gets. Use it at once, as the context of the call.

        Args:
            name: of the model.
            version: a number, an alias, or "" for what the model's routes say (`routes.Routes`).
            sticky_key: calls without a version that have the same key get the same version.

        Raises:
            ModelNotFound: nothing that is served fits; it lists what there is.
        """
        versions = self._models.get(name, {})
        chosen = self._routes.get(name, _NO_ROUTES).choose(version, versions, name, sticky_key)
        if chosen is None:
            requested = f"{name}/{version}" if version else name
            available = [f"{each.name}/{each.version}" for each in self.models]
            raise ModelNotFound(requested, available, self._why_not(name, version))
        return Lease(versions[chosen])

    async def prepare(self, model: ServedModel) -> None:
        """Do what is to be done with a version before it takes calls; `add` follows."""
        for prepare in self.before_added:
            await prepare(model)

    def add(self, model: ServedModel) -> None:
        """Let a version take calls from now on."""
        for notify in self.when_added:
            notify(model)
        versions = self._models.setdefault(model.name, {})
        assert model.version not in versions, f"{model.name}/{model.version} is served already"
        versions[model.version] = _Version(model)
        self._notify_changed()

    async def remove(self, name: str, version: str) -> None:
        """Let a version take no call from now on; returns when the calls that hold it have ended.

        It does nothing where the version is not there.
        """
        versions = self._models.get(name, {})
        removed = versions.pop(version, None)
        if removed is None:
            return
        if not versions:
            del self._models[name]
        removed.is_removed = True
        self._notify_changed()
        if removed.num_leases:
            await removed.is_over.wait()
        for notify in self.when_removed:
            notify(removed.model)

    def show(self, catalog: Catalog) -> None:
        """Have calls go by the catalog's aliases from now on."""
        self.catalog = catalog
        self._routes = catalog.routes()
        self._notify_changed()

    @property
    def not_loaded(self) -> Sequence[NotLoaded]:
        """What lies in the models folder and cannot be served, by name and version."""
        return [each.not_loaded for each in self.catalog.versions if each.not_loaded is not None]

    @property
    def models(self) -> Sequence[ServedModel]:
        """All versions that take calls, by name and by number."""
        every = [each.model for versions in self._models.values() for each in versions.values()]
        return sorted(every, key=lambda model: (model.name, version_order(model.version)))

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def _notify_changed(self) -> None:
        for notify in self.when_changed:
            notify()

    def _why_not(self, name: str, version: str) -> str:
        """What keeps the model from being served, if it is there."""
        known = [each for each in self.catalog.versions if each.name == name]
        for each in known:
            if each.reason and (not version or each.version in {"", version}):
                return f"{each.description} ({each.reason})"
        for each in known:
            if not version or each.version == version:
                return _WHY_NOT.get(each.state, "")
        return ""


def announce_not_loaded(not_loaded: Sequence[NotLoaded], metrics: Metrics) -> None:
    """Count and log what lies in the models folder and is not served."""
    for each in not_loaded:
        metrics.models_not_loaded.labels(each.reason).inc()
    log_not_loaded(not_loaded)
