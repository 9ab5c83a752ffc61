"""What a server has of models: the state of every version, and the aliases. Plain data, the same in every front."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from dragoman.server.errors import NOT_LOADED_REASONS, NotLoadedReason
from dragoman.server.models.discovery import NotLoaded
from dragoman.server.models.routes import Alias, Routes

__all__ = ["Catalog", "VersionState", "VersionStatus"]


class VersionState(StrEnum):
    """What a server does with a version.

    LOADING ends in SERVING or FAILED. SERVING takes calls. DRAINING ends those that run, and ends in UNLOADED. FAILED
    and UNLOADED take no calls; both may be loaded again.
    """

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"
    UNLOADED = "unloaded"


class VersionStatus(msgspec.Struct, frozen=True):
    """A version, or a folder that is none.

    Attributes:
        name: of the model's folder; what is not UTF-8 in it is escaped.
        version: of the version's folder; "" where the whole model is meant.
        state: of the version.
        reason: why it is FAILED, of a closed set; "" in any other state.
        description: why it is in this state, in one line for people; "" where there is nothing to be said.
    """

    name: str
    version: str
    state: VersionState
    reason: str = ""
    description: str = ""

    @classmethod
    def of_not_loaded(cls, folder: NotLoaded) -> "VersionStatus":
        """The status of a folder that is not served."""
        return cls(folder.name, folder.version, VersionState.FAILED, folder.reason, folder.description)

    @property
    def not_loaded(self) -> NotLoaded | None:
        """The same as a folder that is not served; None in any other state than FAILED."""
        reasons: Mapping[str, NotLoadedReason] = {reason: reason for reason in NOT_LOADED_REASONS}
        if self.reason not in reasons:
            return None
        return NotLoaded(self.name, self.version, reasons[self.reason], self.description)


class Catalog(msgspec.Struct, frozen=True):
    """The state of everything, at one moment.

    Attributes:
        versions: sorted by name, then by version.
        aliases: by the model's name and the alias.
    """

    versions: tuple[VersionStatus, ...] = ()
    aliases: Mapping[str, Mapping[str, Alias]] = msgspec.field(default_factory=dict)

    def routes(self) -> dict[str, Routes]:
        """The routes of each model that has aliases."""
        return {name: Routes(aliases) for name, aliases in self.aliases.items()}
