"""What the server process and its further fronts tell each other.

    server -> front    Begin, UseEngine, Listen, ShowCatalog, ChangeMade, Reload, SetFailing, ShowStatistics, Drain
    front -> server    Serving, CannotServe, MakeChange, AskStatistics

Each goes in one packet of a `Channel`. When the channel ends, the other process has ended.
"""

from enum import Enum
from typing import TypeAlias

import msgspec

from dragoman.server.operations.statistics import ModelStatistics

__all__ = [
    "AskStatistics",
    "Begin",
    "CannotServe",
    "Change",
    "ChangeFailed",
    "ChangeKind",
    "ChangeMade",
    "Drain",
    "Listen",
    "MakeChange",
    "Reload",
    "Serving",
    "SetFailing",
    "ShowCatalog",
    "ShowStatistics",
    "ToFront",
    "ToServer",
    "UseEngine",
]


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The first message.

    Attributes:
        settings: the server's, as JSON, with this front's share of what fronts divide.
        num_fronts: of the server, the first one included.
    """

    settings: bytes
    num_fronts: int


class UseEngine(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A descriptor comes along: the front's channel with the engine's host, the first one or one that replaces it."""


class Listen(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answer calls on this port, which the server process has bound. The answer is `Serving`, once models are there."""

    port: int


class Reload(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Go by these settings from now on, and read certificates and tokens again.

    Attributes:
        settings: as in `Begin`; they differ from those before in what can change without a restart.
    """

    settings: bytes


class SetFailing(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Whether parts of the server die again and again: no front is ready then."""

    is_failing: bool


class ShowCatalog(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A descriptor comes along: memory with a `models.catalog.Catalog` as msgpack, of any size."""


class ChangeKind(Enum):
    """What a change does: a method of `models.changes.ModelChanges`."""

    LOAD = "load"
    UNLOAD = "unload"
    SET_ALIAS = "set_alias"
    DELETE_ALIAS = "delete_alias"


class Change(msgspec.Struct, frozen=True, array_like=True):
    """A change of what is served, with the arguments of its method."""

    kind: ChangeKind
    name: str
    version: str = ""
    alias: str = ""
    traffic_percent: float = 0.0


class MakeChange(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A caller of the front asks for a change. The answer is `ChangeMade` with the same number."""

    number: int
    change: Change


class ChangeFailed(msgspec.Struct, frozen=True, array_like=True):
    """Why a change was not made: the name of the error's class, and what it is made of."""

    kind: str
    message: str
    requested: str = ""
    available: tuple[str, ...] = ()
    violations: tuple[tuple[str, str], ...] = ()


class ChangeMade(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A change that a front asked for has been made, or has failed."""

    number: int
    failure: ChangeFailed | None = None


class Drain(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Let running calls end, as the settings say, and end."""


class Serving(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Calls are answered."""


class CannotServe(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The front ends, and why."""

    message: str


class AskStatistics(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A caller asks for the figures of all fronts. The answer is `ShowStatistics`."""


class ShowStatistics(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What has become of the calls for each model, in all fronts; None: that cannot be read."""

    models: dict[str, ModelStatistics] | None


ToFront: TypeAlias = (
    Begin | UseEngine | Listen | ShowCatalog | ChangeMade | Reload | SetFailing | ShowStatistics | Drain
)
ToServer: TypeAlias = Serving | CannotServe | MakeChange | AskStatistics
