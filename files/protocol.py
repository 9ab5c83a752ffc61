"""What the command and its processes send each other: plain data. Nothing here takes long to import."""

from dataclasses import dataclass
from pathlib import Path

from dragoman.files.answers import Outcome
from dragoman.server.config import EngineSettings
from dragoman.server.requests.options import Options

__all__ = ["Begin", "Block", "Done", "Ended", "Failed", "Ready"]


@dataclass(frozen=True, slots=True)
class Begin:
    """What a host is to load, and how many workers it forks."""

    bundle: Path
    settings: EngineSettings
    task: str
    options: Options
    prefix: str


@dataclass(frozen=True, slots=True)
class Ready:
    """From the host: the bundle is loaded and the options are right."""


@dataclass(frozen=True, slots=True)
class Failed:
    """From the host or a worker: it cannot go on. `is_usage` says that what was asked for cannot be right."""

    message: str
    is_usage: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """From the host: a worker has ended, and how."""

    how: str


@dataclass(frozen=True, slots=True)
class Block:
    """To a worker: texts to answer. The first one has the number `first` in its file."""

    number: int
    texts: list[str | None]
    first: int


@dataclass(frozen=True, slots=True)
class Done:
    """From a worker: what became of the texts of a block."""

    number: int
    outcomes: list[Outcome]
