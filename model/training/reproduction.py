"""How to train the same again: the command, and the recipe as a file where it is not a built-in one."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dragoman.common.errors import SettingsError
from dragoman.model.corpora.settings import FolderSettings
from dragoman.model.errors import RecipeError
from dragoman.model.recipe import Recipe, builtin_recipes, load_recipe

__all__ = ["as_toml", "builtin_command", "flat_settings"]


def builtin_command(recipe: Recipe, name: str) -> str | None:
    """The `dragoman train` command of `recipe`, to leave runs/`name`; none if it is no built-in one with changes."""
    if recipe.name not in builtin_recipes():
        return None
    data = recipe.corpus.folder if isinstance(recipe.corpus, FolderSettings) else None
    original = dict(flat_settings(load_recipe(recipe.name).model_dump(mode="json")))
    changes = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in flat_settings(recipe.model_dump(mode="json"))
        if value != original.get(key) and key != "corpus.folder"
    ]
    try:
        again = load_recipe(recipe.name, changes).with_data(Path(data) if data else None)
    except (RecipeError, SettingsError):
        return None
    if again != recipe:
        return None
    options = [
        *(["--data", data] if data else []),
        *(word for change in changes for word in ("--set", change)),
    ]
    return shlex.join(["dragoman", "train", recipe.name, "--out", f"runs/{name}", *options])


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as `section.key` and value, sections within sections too."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_toml(recipe: Recipe) -> str:
    """The recipe as a file that `dragoman train` takes, every setting in it."""
    settings = recipe.model_dump(mode="json", exclude_none=True)
    sections = {key: value for key, value in settings.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in settings.items() if key not in sections]
    for name, section in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Strings, numbers, truth values and lists of them are written in TOML as in JSON; tables are not."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
