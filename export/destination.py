"""The folder that an export writes: MODELS/NAME/VERSION, the only layout that the server serves."""

import os
import re
from pathlib import Path

from dragoman.common.errors import UsageError
from dragoman.common.files import Destination
from dragoman.server.bundle.manifest import Manifest
from dragoman.server.bundle.reader import MANIFEST_NAME
from dragoman.server.models.discovery import MAX_VERSION_DIGITS

__all__ = ["bundle_destination", "bundle_flaw", "choose_bundle_folder", "served_folder"]

_VERSION = re.compile(rf"0|[1-9][0-9]{{0,{MAX_VERSION_DIGITS - 1}}}")
_LIKE_A_VERSION = re.compile(r"(v|ver|version|r|rev)?[-_. ]?\d[\d._-]*((rc|alpha|beta)\d*)?", re.IGNORECASE)


def choose_bundle_folder(out: Path) -> Path:
    """Return the bundle's folder that `out` stands for: itself, or the next free version where it is a model's folder.

    A model's folder does not exist yet, or holds versions only. Nothing is written.

    Raises:
        UsageError: a server would never serve what is written there; the message says what to write instead.
    """
    place = _with_name(out)
    if _VERSION.fullmatch(place.name):
        _check_model(out, place.parent)
        return place
    if _LIKE_A_VERSION.fullmatch(place.name):
        [number, *_] = re.findall(r"\d+", place.name)
        if len(number) > MAX_VERSION_DIGITS:
            raise UsageError(
                f"{out}: the server serves versions of up to {MAX_VERSION_DIGITS} digits; write a smaller one, "
                f"or {place.parent} for its next free version"
            )
        raise UsageError(
            f"{out}: the server serves versions that are whole numbers; write {place.parent / str(int(number))}, "
            f"or {place.parent} for its next free version"
        )
    _check_model(out, place)
    if foreign := next((path for path in _shown(place) if not _VERSION.fullmatch(path.name)), None):
        raise UsageError(
            f"{out} is not a model's folder, which holds versions only: it holds {foreign.name!r}; "
            "name a new folder, as MODELS/NAME or MODELS/NAME/VERSION"
        )
    version = str(_next_version(place))
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"{out} holds the highest version that the server serves, of {MAX_VERSION_DIGITS} digits: "
            "name a free version or a new folder"
        )
    return place / version


def bundle_destination(folder: Path, run: Path, *, replaces: bool) -> Destination:
    """The place for the bundle of `run`; only another bundle is ever replaced, where `replaces` says so."""
    return Destination(
        path=folder, kind="a bundle", is_folder=True, flaw=bundle_flaw, inputs=(run,), replaces=replaces
    )


def bundle_flaw(folder: Path) -> str | None:
    """Return why `folder` is not a bundle of an export without other files; None where it is one."""
    if not folder.is_dir():
        return "it is a file"
    path = folder / MANIFEST_NAME
    if path.is_symlink() or not path.is_file():
        return f"it holds no {MANIFEST_NAME}"
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return f"its {MANIFEST_NAME} is not one of a bundle"
    known = {MANIFEST_NAME, *manifest.files}
    for path in sorted(folder.iterdir()):
        if path.name not in known or path.is_symlink() or not path.is_file():
            return f"it holds {path.name!r} as well"
    return None


def served_folder(bundle: Path) -> Path:
    """Return the folder that `dragoman serve --models` needs to serve `bundle`, relative where `bundle` is relative."""
    folder = bundle.absolute().parent.parent
    return folder if bundle.is_absolute() else Path(os.path.relpath(folder))


def _check_model(out: Path, model: Path) -> None:
    """Refuse a model's folder that the server would not serve, because of its place or its name."""
    name = _with_name(model).absolute().name
    if not name or name.startswith(".") or not name.isprintable():
        raise UsageError(
            f"{out}: the server serves no model called {name!r}; write MODELS/NAME or MODELS/NAME/VERSION"
        )
    if (model / MANIFEST_NAME).is_file():
        raise UsageError(f"{out}: {model} is a bundle itself, not a model's folder")
    if _holds_bundle(model.parent):
        following = model.parent / str(_next_version(model.parent))
        raise UsageError(
            f"{out}: {model.parent} holds the versions of a model; write {following} for the next one"
        )
    if models := [
        path.name for path in _shown(model) if not _VERSION.fullmatch(path.name) and _holds_bundle(path)
    ]:
        raise UsageError(
            f"{out}: {model} is a folder of models (it holds {models[0]!r}); write {model}/NAME for a model in it"
        )


def _with_name(path: Path) -> Path:
    """`path`, or the same place under its own name where it ends in `.` or `..`."""
    return path if path.name not in {"", ".."} else path.resolve()


def _holds_bundle(model: Path) -> bool:
    versions = (path for path in _shown(model) if _VERSION.fullmatch(path.name))
    return any(path.name == MANIFEST_NAME for version in versions for path in _shown(version))


def _next_version(model: Path) -> int:
    return max((int(path.name) for path in _shown(model) if _VERSION.fullmatch(path.name)), default=0) + 1


def _shown(folder: Path) -> list[Path]:
    """Return the files of a folder without hidden ones, in order; none where the folder is missing or unreadable."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
