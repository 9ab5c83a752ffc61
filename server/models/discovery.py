"""Which bundles lie in a models folder, and what lies there besides.

    <models>/<name>/<version>/bundle.json

A version is a whole number of up to `MAX_VERSION_DIGITS` ASCII digits. The highest is served; where it cannot be, the
next lower one is. What is no model, or cannot be looked at, keeps nothing else from being served: it is a `NotLoaded`.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from dragoman.common.errors import DragomanError, OperationError
from dragoman.server.bundle.reader import one_line
from dragoman.server.errors import ModelsError, NotLoadedReason

__all__ = ["MAX_VERSION_DIGITS", "UNAVAILABLE", "NotLoaded", "discover", "log_not_loaded"]

MAX_VERSION_DIGITS = 18
"""Such a number fits into 64 bits with a sign, in whatever program reads it."""

UNAVAILABLE: NotLoadedReason = "unavailable"
"""The reason where the bundle may be sound and this server cannot run it: memory, files or a device are missing."""

_MAX_DESCRIPTION_CHARACTERS = 500

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """A folder in the models folder that is not served.

    Attributes:
        name: the model's folder; what is not UTF-8 in it is escaped.
        version: the version's folder, or "" where the whole model is meant.
        reason: of a closed set.
        description: one line for people.
    """

    name: str
    version: str
    reason: NotLoadedReason
    description: str

    @classmethod
    def of(cls, directory: Path, folder: Path, reason: NotLoadedReason, description: str) -> "NotLoaded":
        """`folder` is a model's or a version's; paths in the description begin below `directory`."""
        name, _, version = str(folder.relative_to(directory)).partition(os.sep)
        # A caller need not know where on the machine models lie.
        shown = description.replace(f"{directory}{os.sep}", "")[:_MAX_DESCRIPTION_CHARACTERS]
        return cls(_escaped(name), version, reason, shown.encode("utf-8", "backslashreplace").decode())

    @classmethod
    def of_error(cls, directory: Path, folder: Path, error: Exception) -> "NotLoaded":
        """`folder` is a version's, whose loading ended in `error`. The log has what is a fault of ours."""
        if isinstance(error, DragomanError):
            reason: NotLoadedReason = UNAVAILABLE if isinstance(error, OperationError) else "broken"
            return cls.of(directory, folder, reason, str(error))
        _log.error("load_failed", path=str(folder), exc_info=error)
        description = f"unexpected {type(error).__name__}: {one_line(error)}"
        is_shortage = isinstance(error, (MemoryError, OSError))
        return cls.of(directory, folder, UNAVAILABLE if is_shortage else "broken", description)


def log_not_loaded(not_loaded: Iterable[NotLoaded]) -> None:
    """Log what is not served."""
    for each in not_loaded:
        _log.warning(
            "not_loaded",
            model=each.name,
            version=each.version,
            reason=each.reason,
            description=each.description,
        )


def discover(directory: Path) -> tuple[list[Sequence[Path]], list[NotLoaded]]:
    """The version folders of each model, highest version first, sorted by name; and all that is none.

    Raises:
        ModelsError: the folder cannot be read or holds no model.
    """
    found: list[Sequence[Path]] = []
    not_loaded: list[NotLoaded] = []
    try:
        models, refused = _folders(directory)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelsError(f"cannot read the models folder {directory}: {reason}") from error
    not_loaded += [_unreadable(directory, path, reason) for path, reason in refused]
    for model in models:
        versions, others = _versions(directory, model)
        not_loaded += others
        if versions:
            found.append(versions)
    if not found:
        raise ModelsError(_nothing_in(directory, models, not_loaded))
    return found, sorted(not_loaded, key=lambda each: (each.name, each.version))


def _versions(directory: Path, model: Path) -> tuple[list[Path], list[NotLoaded]]:
    if problem := _name_problem(model.name):
        return [], [NotLoaded.of(directory, model, "invalid_name", problem)]
    try:
        folders, refused = _folders(model)
    except OSError as error:
        return [], [_unreadable(directory, model, error.strerror)]
    numbered = [folder for folder in folders if _is_version(folder.name)]
    not_loaded = [_unreadable(directory, path, reason) for path, reason in refused if _is_version(path.name)]
    too_long = f"its version has more than {MAX_VERSION_DIGITS} digits"
    not_loaded += [
        NotLoaded.of(directory, folder, "invalid_name", too_long)
        for folder in folders
        if _is_number(folder.name) and not _is_version(folder.name)
    ]
    if not numbered and not not_loaded:
        no_version = "no folder in it is named by a number"
        return [], [NotLoaded.of(directory, model, "not_a_model", no_version)]
    # Of 1, 01 and 001 the plain one comes first: a caller asks for version "1".
    numbered.sort(key=lambda folder: (-int(folder.name), len(folder.name)))
    versions: list[Path] = []
    for folder in numbered:
        if versions and int(versions[-1].name) == int(folder.name):
            twin = f"it is the same number as {versions[-1].name}, which stands beside it"
            not_loaded.append(NotLoaded.of(directory, folder, "duplicate_version", twin))
        else:
            versions.append(folder)
    return versions, not_loaded


def _folders(directory: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Folders that are not hidden, by name; and the entries that the system refuses to look at, with its reason."""
    folders: list[Path] = []
    refused: list[tuple[Path, str]] = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            if stat.S_ISDIR(path.stat().st_mode):
                folders.append(path)
        except OSError as error:
            refused.append((path, str(error.strerror)))
    return folders, refused


def _is_version(name: str) -> bool:
    return _is_number(name) and len(name) <= MAX_VERSION_DIGITS


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _name_problem(name: str) -> str | None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8, so no caller can ask for it"
    return None if name.isprintable() else "its name holds a character that cannot be printed"


def _unreadable(directory: Path, path: Path, reason: str | None) -> NotLoaded:
    return NotLoaded.of(directory, path, "unreadable", f"it cannot be read: {reason}")


def _nothing_in(directory: Path, models: Sequence[Path], not_loaded: Sequence[NotLoaded]) -> str:
    expected = f"no models in {directory}: expected {directory}/<name>/<version>/bundle.json"
    if any(_is_version(model.name) for model in models):
        return f"{expected}; did you mean {directory.parent}?"
    others = [each for each in not_loaded if each.reason != "not_a_model"]
    return f"{expected}; {others[0].name}: {others[0].description}" if others else expected


def _escaped(text: str) -> str:
    """Bytes that are not UTF-8 in a name come as lone surrogates, which no message holds."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
