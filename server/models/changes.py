"""Changes of what is served, as services ask for them; whoever makes them."""

from typing import NoReturn, Protocol

from dragoman.server.errors import PermissionDenied

__all__ = ["ForbiddenChanges", "ModelChanges"]


class ModelChanges(Protocol):
    """Makes changes one at a time. `repository.Repository` says what each does and raises."""

    async def load(self, name: str, version: str = "") -> None:
        """Serve a version; without one, the highest that lies in the models folder."""

    async def unload(self, name: str, version: str = "") -> None:
        """Drain and unload a version; without one, all versions of the model."""

    async def set_alias(self, name: str, alias: str, version: str, traffic_percent: float) -> None:
        """Let an alias name a version, and get a share of the calls without a version."""

    async def delete_alias(self, name: str, alias: str) -> None:
        """Let an alias name nothing any more."""


class ForbiddenChanges:
    """Refuses all changes: `ModelChanges` of a server whose settings do not allow any."""

    async def load(self, _name: str, _version: str = "") -> None:
        """Raises PermissionDenied."""
        _refuse()

    async def unload(self, _name: str, _version: str = "") -> None:
        """Raises PermissionDenied."""
        _refuse()

    async def set_alias(self, _name: str, _alias: str, _version: str, _traffic_percent: float) -> None:
        """Raises PermissionDenied."""
        _refuse()

    async def delete_alias(self, _name: str, _alias: str) -> None:
        """Raises PermissionDenied."""
        _refuse()


def _refuse() -> NoReturn:
    raise PermissionDenied("this server's models cannot be changed: its setting models.allow_changes is off")
