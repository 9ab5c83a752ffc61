"""What the processes of an engine tell each other about lanes and fronts; not about sequences: that is `engine/api.py`.

    server process -> host    Begin, AddFront, Probe
    host -> server process    LoadingEnded, LoadingFailed, Alive
    host -> front             ModelLoaded, ModelNotLoaded, LaneAdded, LaneRemoved, LoadingEnded
    front -> host             EndLane, LinkLane
    host -> lane              AddFront, DropModel, RetireLane
    lane -> host              LaneReady, LaneFailed

Each goes in one packet of a `Channel`, some with descriptors. A model's key is `name/version`.
"""

from typing import TypeAlias

import msgspec

from dragoman.server.engine.api import EngineFacts

__all__ = [
    "AddFront",
    "Alive",
    "Begin",
    "DropModel",
    "EndLane",
    "FromFront",
    "FromLane",
    "LaneAdded",
    "LaneFailed",
    "LaneReady",
    "LaneRemoved",
    "LinkLane",
    "LoadingEnded",
    "LoadingFailed",
    "ModelLoaded",
    "ModelNotLoaded",
    "Probe",
    "RetireLane",
    "ToFront",
    "ToHost",
    "ToLane",
    "ToServer",
]


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Load models; the first message to a host.

    Attributes:
        directory: where models lie, as the system writes it.
        settings: how they run, as JSON.
        versions: `name/version` of what has to be loaded, and nothing else; None: whatever is there. A host that takes
            the place of another one loads what that one had.
    """

    directory: bytes
    settings: bytes
    versions: list[str] | None = None


class AddFront(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Here is the socket of one more front: to the host its channel, to a lane its link."""

    front: int


class EndLane(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The lane's process gives no sign of life: end it."""

    pid: int


class LinkLane(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The front has no link with the lane's process: give it another one, if the process has not ended."""

    pid: int


class ModelLoaded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A model is loaded and checked. Two descriptors come along: its manifest's and its tokenizer's bytes.

    Attributes:
        name: of the model.
        version: of the model.
        facts: of its lanes.
    """

    name: str
    version: str
    facts: EngineFacts

    @property
    def key(self) -> str:
        """By which lanes and fronts know the model."""
        return f"{self.name}/{self.version}"


class ModelNotLoaded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A folder of the models folder is not served: see `models/discovery.py`."""

    name: str
    version: str
    reason: str
    description: str


class LaneAdded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A lane waits for work. A descriptor comes along: the front's link with it.

    Attributes:
        lane: its number. A process that takes the place of another one has the same.
        pid: its process.
        models: keys of those that it has.
    """

    lane: int
    pid: int
    models: list[str]


class LaneRemoved(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A lane's process has ended; `how` for people."""

    lane: int
    pid: int
    how: str


class LoadingEnded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All models are loaded and their lanes wait for work."""


class LoadingFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Nothing can be served: the name of an error class of the server and the error's message."""

    kind: str
    message: str


class Probe(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Is the host alive? The answer is `Alive`."""


class Alive(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The host hears and answers."""


class LaneReady(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The lane has its rows and waits for work."""


class LaneFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The lane cannot have its rows, with the name of an error class of the server and the error's message."""

    kind: str
    message: str


class DropModel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The lane gives up the rows of the model with this key."""

    model: str


class RetireLane(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The lane ends when all fronts have gone."""


ToHost: TypeAlias = Begin | AddFront | Probe
FromFront: TypeAlias = EndLane | LinkLane
ToServer: TypeAlias = LoadingEnded | LoadingFailed | Alive
ToFront: TypeAlias = ModelLoaded | ModelNotLoaded | LaneAdded | LaneRemoved | LoadingEnded
ToLane: TypeAlias = AddFront | DropModel | RetireLane
FromLane: TypeAlias = LaneReady | LaneFailed
