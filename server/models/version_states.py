"""The state of each version and the aliases of each model: what may follow what. Pure, and the same after any history.

| from | to |
|---|---|
| nothing, FAILED, UNLOADED | LOADING, FAILED |
| LOADING | SERVING, FAILED |
| SERVING | DRAINING |
| DRAINING | UNLOADED |
"""

from collections.abc import Collection, Iterable, Mapping

from dragoman.server.models.catalog import Catalog, VersionState, VersionStatus
from dragoman.server.models.routes import Alias, Routes, version_order

__all__ = ["Key", "VersionStates"]

Key = tuple[str, str]
"""A model's name and a version of it."""

_FOLLOWS: Mapping[VersionState | None, Collection[VersionState]] = {
    None: {VersionState.LOADING, VersionState.FAILED},
    VersionState.FAILED: {VersionState.LOADING, VersionState.FAILED},
    VersionState.UNLOADED: {VersionState.LOADING, VersionState.FAILED},
    VersionState.LOADING: {VersionState.SERVING, VersionState.FAILED},
    VersionState.SERVING: {VersionState.DRAINING},
    VersionState.DRAINING: {VersionState.UNLOADED},
}


_OF_BUNDLES = frozenset({"broken", "unavailable", "incomplete"})
"""Reasons of folders that are versions. A folder with another reason is never looked for as one."""


class VersionStates:
    """What there is now."""

    def __init__(self, statuses: Iterable[VersionStatus] = ()) -> None:
        """`statuses` is what there is at the start."""
        self._statuses = {(each.name, each.version): each for each in statuses}
        self._aliases: dict[str, dict[str, Alias]] = {}
        self._ever_served = {key for key in self._statuses if self.state(*key) is VersionState.SERVING}

    def state(self, name: str, version: str) -> VersionState | None:
        """The state of a version; None: nothing is known of it."""
        status = self._statuses.get((name, version))
        return None if status is None else status.state

    def reason(self, name: str, version: str) -> str:
        """Why a version is FAILED; "" in any other state."""
        status = self._statuses.get((name, version))
        return "" if status is None else status.reason

    def change(self, status: VersionStatus) -> bool:
        """Put a version into another state; returns whether more than the description is new."""
        key = status.name, status.version
        before = self._statuses.get(key)
        follows = _FOLLOWS[None if before is None else before.state]
        assert status.state in follows, f"{key}: {before} is not followed by {status.state}"
        if status.state is VersionState.SERVING:
            self._ever_served.add(key)
        self._statuses[key] = status
        return before is None or (before.state, before.reason) != (status.state, status.reason)

    def serving(self, name: str) -> list[str]:
        """The versions of a model that take calls, highest first."""
        versions = [
            version
            for (model, version), status in self._statuses.items()
            if model == name and status.state is VersionState.SERVING
        ]
        return sorted(versions, key=version_order, reverse=True)

    def superseded(self, name: str) -> list[str]:
        """The versions of a model that take calls, are not the highest of these, and have no alias."""
        return [each for each in self.serving(name)[1:] if each not in self.routes(name).versions]

    def is_news(self, name: str, version: str, *, all_versions: bool) -> bool:
        """Whether nobody has decided yet that this server does not serve a version that lies in its folder.

        With `all_versions`, any version that was never served is news. Else a version is news when it is higher than
        all that were ever served: neither a lower one nor one that was unloaded comes back by itself.
        """
        if all_versions:
            return (name, version) not in self._ever_served
        served = [version_order(known) for model, known in self._ever_served if model == name]
        return all(version_order(version) > each for each in served)

    def note_folders(self, folders: Collection[Key]) -> bool:
        """Know which versions lie in the models folder; returns whether that is new.

        Such a version is UNLOADED until something is done with it. A version that is not served is forgotten with its
        folder.
        """
        gone = [
            key
            for key, status in self._statuses.items()
            if key not in folders
            and status.version
            and (status.state is VersionState.UNLOADED or status.reason in _OF_BUNDLES)
        ]
        new = [key for key in folders if key not in self._statuses]
        for key in gone:
            del self._statuses[key]
        for name, version in new:
            self._statuses[name, version] = VersionStatus(name, version, VersionState.UNLOADED)
        return bool(gone or new)

    def routes(self, name: str) -> Routes:
        """The routes of a model."""
        return Routes(self._aliases.get(name, {}))

    def set_alias(self, name: str, alias: str, to: Alias) -> None:
        """Let `alias` name a version, with a share of the traffic."""
        self._aliases[name] = {**self._aliases.get(name, {}), alias: to}

    def delete_alias(self, name: str, alias: str) -> None:
        """Let `alias` name nothing any more."""
        left = {known: to for known, to in self._aliases[name].items() if known != alias}
        if left:
            self._aliases[name] = left
        else:
            del self._aliases[name]

    def catalog(self) -> Catalog:
        """What there is at this moment."""
        ordered = sorted(self._statuses.values(), key=lambda each: (each.name, version_order(each.version)))
        return Catalog(tuple(ordered), dict(self._aliases))
