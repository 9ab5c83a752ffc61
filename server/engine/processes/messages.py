"""What the processes of an engine tell each other about lanes and fronts; not about sequences: that is `engine/api.py`.

    server process -> host    Begin, AddFront, LoadVersion, UnloadVersion, Probe
    host -> server process    LoadingEnded, LoadingFailed, ChangeEnded, Alive
    host -> front             ModelLoaded, ModelNotLoaded, LaneAdded, LaneRetired, LaneRemoved, LoadingEnded,
                              ModelAdded, ModelRemoved
    front -> host             EndLane, LinkLane, ChangeTaken
    host -> lane              AddFront, DropModel, RetireLane
    lane -> host              LaneReady, LaneFailed
    checking child -> host    Checked, CheckFailed

Each goes in one packet of a `Channel`, some with descriptors. A model's key is `name/version`.
"""

from typing import TypeAlias

import msgspec

from dragoman.server.engine.api import EngineFacts

__all__ = [
    "AddFront",
    "Alive",
    "Begin",
    "ChangeEnded",
    "ChangeTaken",
    "CheckFailed",
    "Checked",
    "DropModel",
    "EndLane",
    "FromCheck",
    "FromFront",
    "FromLane",
    "LaneAdded",
    "LaneFailed",
    "LaneReady",
    "LaneRemoved",
    "LaneRetired",
    "LinkLane",
    "LoadVersion",
    "LoadingEnded",
    "LoadingFailed",
    "ModelAdded",
    "ModelLoaded",
    "ModelNotLoaded",
    "ModelRemoved",
    "Probe",
    "RetireLane",
    "ToFront",
    "ToHost",
    "ToLane",
    "ToServer",
    "UnloadVersion",
]


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Load models; the first message to a host.

    Attributes:
        directory: where models lie, as the system writes it.
        settings: how they run, as JSON.
        versions: `name/version` of what has to be loaded, and nothing else; None: whatever is there. A host that takes
            the place of another one loads what that one had.
        drain_limit_s: how long what runs may go on where a lane retires or a version is unloaded.
    """

    directory: bytes
    settings: bytes
    versions: list[str] | None = None
    drain_limit_s: float = 30.0
    all_versions: bool = False


class LoadVersion(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Have a version more on all lanes. The answer is `ChangeEnded`, once all fronts have it or it is clear why not."""

    name: str
    version: str


class UnloadVersion(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Have a version less. The answer is `ChangeEnded`, once no front has calls for it and it is gone."""

    name: str
    version: str


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


class LaneRetired(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A lane's process gets nothing more from the front, which closes its link when nothing of it is left there."""

    pid: int


class ModelAdded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """While others are served: calls may come for the model with this key, which lanes have. Answer: `ChangeTaken`."""

    model: str


class ModelRemoved(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """While others are served: no call for a model begins any more. Answer, when none runs: `ChangeTaken`.

    Attributes:
        model: its key.
        limit_s: after which those that still run fail.
    """

    model: str
    limit_s: float


class ChangeTaken(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The front has done what `ModelAdded` or `ModelRemoved` of the model with this key said."""

    model: str


class ChangeEnded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The change that the server process asked for is made; or why it is not, and what was served before is.

    Attributes:
        kind: the name of an error class of the server; "": the change is made.
        message: of the error.
    """

    kind: str = ""
    message: str = ""


class Checked(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A version can be served.

    Attributes:
        digest: SHA-256 of its manifest, which has those of all other files.
        seconds: reading, loading and trying it took.
        slowest_run_s: the slowest run of a graph took.
    """

    digest: bytes
    seconds: float
    slowest_run_s: float = 0.0


class CheckFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A version cannot be served, with the name of an error class of the server and the error's message."""

    kind: str
    message: str


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


ToHost: TypeAlias = Begin | AddFront | LoadVersion | UnloadVersion | Probe
FromFront: TypeAlias = EndLane | LinkLane | ChangeTaken
ToServer: TypeAlias = LoadingEnded | LoadingFailed | ChangeEnded | Alive
ToFront: TypeAlias = (
    ModelLoaded
    | ModelNotLoaded
    | LaneAdded
    | LaneRetired
    | LaneRemoved
    | LoadingEnded
    | ModelAdded
    | ModelRemoved
)
ToLane: TypeAlias = AddFront | DropModel | RetireLane
FromLane: TypeAlias = LaneReady | LaneFailed
FromCheck: TypeAlias = Checked | CheckFailed
