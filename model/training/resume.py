"""What is in a run folder before training: nothing, a finished run, or one to go on with."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import OperationError, UsageError
from common.files import check_writable
from model.recipe import Recipe
from model.run import RECIPE_FILE, RECORD_FILE, RUN_FILES, STATE_FOLDER, read_settings
from model.training.reproduction import flat_settings
from model.training.state import State, StateStore

__all__ = ["changed_settings", "make_room", "resume_state"]

_FIXED = ("task", "model.", "tokenizer.", "training.optimizer")
"""Settings, or beginnings of their names, that weights, token ids and the optimizers' moments in a state depend on."""
_FREE = ("model.dropout", "model.attention_dropout", "tokenizer.dropout", "tokenizer.num_editions")


def resume_state(out: Path, recipe: Recipe, *, accepts_changes: bool) -> tuple[State | None, list[str]]:
    """The state to go on from, none if training had not come to its first; and what a person should know of it.

    Raises:
        UsageError: there is nothing to resume, or the recipe is another one, with each setting that changed; one that
            the state depends on cannot be accepted.
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


def make_room(out: Path, *, restarts: bool) -> None:
    """Make `out` an empty run folder. Only what is known to be a run is ever removed.

    Raises:
        UsageError: it holds something else, or a run that is not finished and `restarts` is not given.
        OperationError: it cannot be written.
    """
    check_writable(out)
    if (out / RECIPE_FILE).is_file():
        states = sorted((out / STATE_FOLDER).glob("step-*")) if not (out / RECORD_FILE).is_file() else []
        if states and not restarts:
            step = int(states[-1].name.split("-")[1])
            raise UsageError(
                f"{out} holds an unfinished run at step {step:,}: give --resume to go on with it, "
                "or --restart to begin again"
            )
        try:
            for name in RUN_FILES:
                path = out / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            raise OperationError(f"cannot replace the run in {out}: {error.strerror}") from error
    elif others := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
        raise UsageError(f"{out} holds no run but {others[0]!r}: give --out an empty or a new folder")
