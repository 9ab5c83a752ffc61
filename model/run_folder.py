"""Tells a run's folder from any other folder, so that training removes nothing else."""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from dragoman.model.run import (
    CHECKPOINT_FOLDER,
    CORPUS_FOLDER,
    RECIPE_FILE,
    REPORT_FILE,
    RUN_FILES,
    STATE_FOLDER,
    TENSORBOARD_FOLDER,
)

__all__ = ["report_flaw", "run_flaw"]

_IN_FOLDERS = {
    TENSORBOARD_FOLDER: ("events.out.tfevents.*",),
    CHECKPOINT_FOLDER: ("step-*",),
    CORPUS_FOLDER: ("index.json", "*.npy"),
    STATE_FOLDER: ("step-*",),
}
"""What training writes into the folders of a run."""

_SECTIONS = {"task", "corpus", "tokenizer", "model", "training"}  # of a recipe, in every release
_REPORT_TITLE = b": training report</title>"


def run_flaw(path: Path) -> str | None:
    """Return why `path` is not a run, finished or not; None where it is one.

    A run's folder may hold other files beside those of the run. In the places of the run's own it may not: a new
    training removes these.
    """
    if not path.is_dir():
        return "it is a file"
    if not (path / RECIPE_FILE).exists():
        others = sorted(other.name for other in path.iterdir() if not other.name.startswith("."))
        return f"it holds {others[0]!r} and no {RECIPE_FILE}" if others else None
    if not (path / RECIPE_FILE).is_file() or not _is_recipe(path / RECIPE_FILE):
        return f"its {RECIPE_FILE} is not that of a run"
    return next(_foreign_things(path), None)


def report_flaw(path: Path) -> str | None:
    """Return why `path` is not the report of a training; None where it is one."""
    if not path.is_file():
        return "it is no file"
    with path.open("rb") as file:
        return None if _REPORT_TITLE in file.read(1 << 12) else "it is another page"


def _is_recipe(path: Path) -> bool:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.keys() >= _SECTIONS


def _foreign_things(run: Path) -> Iterator[str]:
    """Yield a description of each thing in a place of the run that training did not write."""
    for name in RUN_FILES:
        place = run / name
        if place.is_symlink():
            yield f"its {name!r} is a link"
        elif place.exists() and place.is_dir() != (name in _IN_FOLDERS):
            yield f"its {name!r} is a {'folder' if place.is_dir() else 'file'}"
        elif place.is_dir():
            yield from (f"its {name!r} holds {foreign!r} as well" for foreign in _foreign_names(place))
        elif name == REPORT_FILE and place.exists() and (flaw := report_flaw(place)):
            yield f"its {name!r}: {flaw}"


def _foreign_names(folder: Path) -> Iterator[str]:
    """Yield names that training does not give. A hidden file with such a name is what a killed training left."""
    patterns = _IN_FOLDERS[folder.name]
    for name in sorted(path.name for path in folder.iterdir()):
        if not any(fnmatch(name, pattern) or fnmatch(name, f".{pattern}.*") for pattern in patterns):
            yield name
