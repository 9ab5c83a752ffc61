"""Typed settings: TOML in, a frozen validated object out, with errors a person can act on."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import SettingsError

__all__ = ["Settings", "parse_overrides", "read_toml"]


class Settings(BaseModel):
    """Base of every settings type: frozen, and an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def load(cls, values: Mapping[str, Any], *, source: str) -> Self:
        """Validate `values`; `source` (a file's name) opens the message when they do not fit.

        Raises:
            SettingsError: naming the first key that is wrong, its value and what would be right.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(f"{source}: {_first_problem(cls, error)}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        SettingsError: the file is missing or is not TOML, with the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def parse_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay `section.key=value` overrides over a nested dictionary; returns a new one.

    A value is read as TOML (`3`, `0.1`, `true`, `"text"`, `[1, 2]`) and, when it is none, as a bare string.

    Raises:
        SettingsError: an override has no `=`, or goes through something that is no section.
    """
    merged: dict[str, Any] = json.loads(json.dumps(values))
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted.strip():
            raise SettingsError(f"--set {override!r} is not of the form key=value")
        *sections, key = dotted.strip().split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise SettingsError(f"--set {override!r}: {section!r} is a value, not a section")
        target[key] = _toml_value(text.strip())
    return merged


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _first_problem(cls: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = list(_settings_at(cls, location[:-1]))
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
        return f"unknown key {key!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")
    if problem["type"] == "missing":
        return f"{key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} = {problem['input']!r}: {message}"


def _settings_at(cls: type[BaseModel], location: Sequence[str]) -> Sequence[str]:
    """Field names of the settings type nested at `location`; unions offer the fields of every member."""
    candidates: list[type[BaseModel]] = [cls]
    for part in location:
        nested = [_models_in(c.model_fields[part].annotation) for c in candidates if part in c.model_fields]
        found = [model for models in nested for model in models]
        candidates = found or candidates  # a discriminator's tag is part of the location, not a field
    return [name for candidate in candidates for name in candidate.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
