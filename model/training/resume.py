"""The run folder before training: empty, with a finished run, or with a run to resume."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dragoman.common.errors import OperationError, UsageError
from dragoman.common.files import Destination, check_writable
from dragoman.model.recipe import Recipe
from dragoman.model.run import (
    CHECKPOINT_FOLDER,
    RECIPE_FILE,
    RECORD_FILE,
    RUN_FILES,
    STATE_FOLDER,
    WEIGHTS_FILE,
    read_settings,
)
from dragoman.model.run_folder import run_flaw
from dragoman.model.training.reproduction import flat_settings
from dragoman.model.training.state import State, StateStore

__all__ = ["changed_settings", "leaving_nothing_of_a_refusal", "make_room", "resume_state"]

_FIXED = ("task", "model.", "tokenizer.", "training.optimizer")
"""Settings, or beginnings of their names, that weights, token ids and the optimizers' moments in a state depend on."""
_FREE = ("model.dropout", "model.attention_dropout", "tokenizer.dropout", "tokenizer.num_editions")


def resume_state(out: Path, recipe: Recipe, *, accepts_changes: bool) -> tuple[State | None, list[str]]:
    """Return the state to go on from, None if none was saved yet, and notes for the user.

    Raises:
        UsageError: there is nothing to resume, or the recipe changed; the message names each changed setting. A
            setting that the state depends on cannot change at all.
        RunError: every state is damaged.
    """
    if not (out / RECIPE_FILE).is_file():
        raise UsageError(f"there is no run to resume in {out}")
    # Read as a recipe: one that an earlier release wrote lacks newer settings, which had their defaults.
    begun_with = read_settings(out / RECIPE_FILE, Recipe)
    changes = changed_settings(begun_with.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if changes and not accepts_changes:
        raise UsageError(
            f"the recipe is not the one {out} was begun with: {'; '.join(changes)}; "
            "resume with the same one, or give --accept-changes"
        )
    if (out / RECORD_FILE).is_file() and not changes:
        raise UsageError(f"the run in {out} is finished, there is nothing to resume")
    found = StateStore(out / STATE_FOLDER).load()
    notes = [f"changed: {change}" for change in changes]
    if found is None:
        return None, [*notes, "no state was saved yet: training begins at the beginning"]
    if fixed := [change for change in changes if change.startswith(_FIXED) and not change.startswith(_FREE)]:
        raise UsageError(
            f"{'; '.join(fixed)}: this cannot change once {out} has begun; begin a new run, in another folder"
        )
    state, damaged = found
    if changes:
        state = state.with_validation_anew()
    notes += [f"passed over {path.name}: it is damaged" for path in damaged]
    return state, [*notes, f"resumed at step {state.progress.step:,}"]


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each setting that differs, as `section.key: before -> now`."""
    old, new = dict(flat_settings(before)), dict(flat_settings(now))
    return [
        f"{key}: {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def make_room(
    out: Path,
    *,
    restarts: bool,
    reads: Sequence[Path] = (),
    before_removal: Callable[[], object] = lambda: None,
) -> None:
    """Make `out` an empty run folder. Only a run is ever removed, and only with `restarts`.

    A link to a folder is followed, for a run is written in its place.

    Args:
        out: the folder; it is made if it is missing.
        restarts: whether a run in it with weights or a state, finished or not, may be removed.
        reads: folders that training reads, which `out` must be apart from.
        before_removal: is called before such a run is removed; where it raises, nothing is touched.

    Raises:
        UsageError: it holds something else, or a run and `restarts` is not given.
        OperationError: it cannot be written.
    """
    found = _found(out)
    Destination(
        path=out.resolve() if out.is_symlink() else out,
        kind="a run",
        is_folder=True,
        flaw=run_flaw,
        inputs=tuple(reads),
        replaces=restarts or found is None,
        advice=found or "",
    ).check()
    if found is not None:
        before_removal()
    check_writable(out)
    try:
        _remove(out, RUN_FILES)
    except OSError as error:
        raise OperationError(f"cannot replace the run in {out}: {error.strerror}") from error


@contextlib.contextmanager
def leaving_nothing_of_a_refusal(out: Path) -> Iterator[None]:
    """Remove `out` again where the block made it and raises UsageError before any checkpoint.

    Folders above `out` that were made with it go as well, if they are empty.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    except UsageError:
        if made and _found(out) is None and not any((out / CHECKPOINT_FOLDER).glob("*")):
            with contextlib.suppress(OSError):
                _remove(out, (*RUN_FILES, RECIPE_FILE))
                for folder in made:
                    folder.rmdir()
        raise


def _remove(out: Path, names: Sequence[str]) -> None:
    for name in names:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _found(out: Path) -> str | None:
    """Return the state of the run in `out` and what the user can do; None where nothing would be lost."""
    if (out / RECORD_FILE).is_file():
        return "finished; give --restart to train anew in its place, or --out another folder"
    states = sorted((out / STATE_FOLDER).glob("step-*"))
    if not states and not (out / WEIGHTS_FILE).exists():
        return None
    step = f" at step {int(states[-1].name.split('-')[1]):,}" if states else ""
    return f"unfinished{step}; give --resume to go on with it, or --restart to begin again"
