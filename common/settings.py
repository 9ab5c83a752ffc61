"""Typed settings: TOML in, a frozen validated object out, with errors a person can act on."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import SettingsError

__all__ = ["Settings", "parse_overrides", "read_toml"]


class Settings(BaseModel):
    """Base of every settings type: frozen, and an unknown key is an error naming the nearest known one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )

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
    context = problem.get("ctx", {})
    tag = str(context.get("discriminator", "")).strip("'")  # the field a union's members are told apart by
    sections, types = _locate(cls, problem["loc"][:-1])
    key = ".".join([*sections, *(str(part) for part in problem["loc"][-1:])])
    match problem["type"]:
        case "extra_forbidden":
            nearest = _nearest(cls, str(problem["loc"][-1]), types)
            return f"unknown key {key!r}" + (f"; did you mean {nearest!r}?" if nearest else "")
        case "missing":
            return f"{key!r} is missing"
        case "union_tag_not_found":
            return f"'{key}.{tag}' is missing"
        case "union_tag_invalid":
            return f"{key}.{tag} = {context['tag']!r}: it is one of {context['expected_tags']}"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], Mapping):  # a rule between several keys, which it names
        return ": ".join([".".join(_locate(cls, problem["loc"])[0]), message]).removeprefix(": ")
    return f"{key} = {problem['input']!r}: {message}" if key else message


def _locate(cls: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], list[type[BaseModel]]]:
    """Sections as a file writes them, and the settings types that may stand there.

    Pydantic puts the tag of a discriminated union into the location: no section, but it tells the type.
    """
    sections: list[str] = []
    types = [cls]
    for part in map(str, location):
        fields = [model.model_fields[part] for model in types if part in model.model_fields]
        if fields:
            sections.append(part)
            types = [model for field in fields for model in _models_in(field.annotation)]
        else:
            types = [model for model in types if part in _tags(model)] or types
    return sections, types


def _nearest(cls: type[BaseModel], key: str, types: Sequence[type[BaseModel]]) -> str | None:
    """The known key most like `key`: the same one in another section, or else one of its own section."""
    elsewhere = [path for path in _paths(cls) if path.split(".")[-1] == key]
    known = elsewhere or [name for model in types for name in model.model_fields]
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.0)), None)


def _paths(cls: type[BaseModel]) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield name
        for nested in _models_in(field.annotation):
            yield from (f"{name}.{path}" for path in _paths(nested))


def _tags(cls: type[BaseModel]) -> list[Any]:
    annotations = [field.annotation for field in cls.model_fields.values()]
    return [tag for a in annotations if get_origin(a) is Literal for tag in get_args(a)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
