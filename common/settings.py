"""Typed settings: TOML in, a frozen validated object out, with errors a person can act on."""

import copy
import difflib
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from dragoman.common.errors import SettingsError

__all__ = ["Settings", "parse_overrides", "read_toml"]

_MIN_LIKENESS: Final = 0.6  # difflib's own measure for a close match: a worse suggestion misleads
_MAX_SHOWN_CHARACTERS: Final = 120  # of a wrong value, so that a message stays a line


class Settings(BaseModel):
    """Base of every settings type: frozen, finite, and an unknown key is an error naming a known one like it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
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
    """Parse a TOML file; a byte order mark, which some editors write, is no part of it.

    Raises:
        SettingsError: the file is missing or is not TOML, with the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # NUL in a path
        raise SettingsError(f"cannot read {str(path)!r}: {error}") from error
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise SettingsError(f"{path} is not valid TOML: its values are nested too deeply") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def parse_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay `section.key=value` overrides over a nested dictionary; returns a new one.

    A value is read as TOML (`3`, `0.1`, `true`, `"text"`, `[1, 2]`) and, when it is none, as a bare string.

    Raises:
        SettingsError: an override has no `=`, or goes through something that is no section.
    """
    merged = copy.deepcopy(values)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted.strip():
            raise SettingsError(f"--set {override!r} is not of the form key=value")
        *sections, key = map(str.strip, dotted.split("."))
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise SettingsError(f"--set {override!r}: {section!r} is a value, not a section")
        target[key] = _toml_value(text.strip())
    return merged


def _toml_value(text: str) -> Any:
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return values["value"] if len(values) == 1 else text  # a text of several lines may look like several keys


def _first_problem(cls: type[BaseModel], error: ValidationError) -> str:
    problems = error.errors()
    problem = problems[0]
    context = problem.get("ctx", {})
    tag = str(context.get("discriminator", "")).strip("'")  # the field a union's members are told apart by
    key = _key(cls, problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            nearest = _nearest(cls, str(problem["loc"][-1]), _locate(cls, problem["loc"][:-1])[1])
            return f"unknown key {key!r}" + (f"; did you mean {nearest!r}?" if nearest else "")
        case "missing":
            return f"{key!r} is missing"
        case "union_tag_not_found":
            return f"'{key}.{tag}' is missing"
        case "union_tag_invalid":
            return f"{key}.{tag} = {context['tag']!r}: it is one of {context['expected_tags']}"
    if problem["type"] in {"model_type", "model_attributes_type"}:
        message = "it is a section of settings, not a value"
    else:  # of a value that may be of several types there is a problem for each of them
        message = _joined([other["msg"] for other in problems if _key(cls, other["loc"]) == key])
    is_rule = isinstance(problem["input"], Mapping)  # between several keys, which its message names
    value = "" if is_rule or not key else f" = {_shown(problem['input'])}"
    return f"{key}{value}: {message}".removeprefix(": ")


def _joined(messages: Sequence[str]) -> str:
    """`Input should be 1` and `Input should be 'auto'` as one sentence; else the first message."""
    start = "Input should be "
    if len(messages) > 1 and all(message.startswith(start) for message in messages):
        return start + ", or ".join(message.removeprefix(start) for message in messages)
    return messages[0].removeprefix("Value error, ")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[: _MAX_SHOWN_CHARACTERS - 3]}..."


def _key(cls: type[BaseModel], location: Sequence[str | int]) -> str:
    """The location as a file writes it, `section.key`."""
    return ".".join(_locate(cls, location)[0])


def _locate(cls: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], list[type[BaseModel]]]:
    """Keys as a file writes them, and the settings types that may stand there.

    Pydantic puts the member of a union into the location: no key, but of a discriminated union it tells the type.
    """
    keys: list[str] = []
    types_here, is_union = [cls], False
    for part in map(str, location):
        fields = [model.model_fields[part] for model in types_here if part in model.model_fields]
        if fields:
            keys.append(part)
            types_here = [model for field in fields for model in _models_in(field.annotation)]
            is_union = not types_here and any(_is_union(field.annotation) for field in fields)
        elif tagged := [model for model in types_here if part in _tags(model)]:
            types_here = tagged
        elif not is_union:
            keys.append(part)
    return keys, types_here


def _nearest(cls: type[BaseModel], key: str, types_here: Sequence[type[BaseModel]]) -> str | None:
    """A known key like `key`: the same one in another section, or else one of its own section; None without any."""
    elsewhere = [path for path in _paths(cls) if path.split(".")[-1] == key]
    if elsewhere:
        return elsewhere[0]
    known = [name for model in types_here for name in model.model_fields]
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=_MIN_LIKENESS)), None)


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


def _is_union(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_union(get_args(annotation)[0])
    return get_origin(annotation) in {Union, types.UnionType}
