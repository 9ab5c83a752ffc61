"""Every key of a settings class with its values, its default and its meaning: as a TOML file and as a page.

All of it comes from the class's JSON schema (https://docs.pydantic.dev/latest/concepts/json_schema/), so a key that
is new or changes needs no second text.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dragoman.common.settings import Settings

__all__ = ["Section", "Setting", "as_markdown", "as_toml", "sections_of"]

_TEXT_WIDTH = 98
_DEFINITIONS = "#/$defs/"
_TAG = "kind"
"""The key that chooses a section's form. It comes first, as people write it."""

_KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """One key.

    Attributes:
        name: as it stands in its section.
        values: the values that it takes, in words.
        default: as TOML, or None where it has none: it is required, or it is left out.
        is_required: whether a file must set it.
        meaning: what it does.
    """

    name: str
    values: str
    default: str | None
    is_required: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the TOML file, or one of the forms that a table can take.

    Attributes:
        name: `server`; empty for the keys above all tables.
        form: the value of `kind` that chooses this form, or empty.
        meaning: what the section is about.
        settings: its keys, in the order of the class.
    """

    name: str
    form: str
    meaning: str
    settings: tuple[Setting, ...]


def sections_of(settings: type[Settings]) -> tuple[Section, ...]:
    """All sections of `settings`; a section that takes several forms comes once for each form."""
    schema = settings.model_json_schema()
    definitions: Schema = schema.get("$defs", {})
    top: list[tuple[str, Schema]] = []
    sections: list[Section] = []
    for name, value in schema["properties"].items():
        forms = _forms(value, definitions)
        if not forms:
            top.append((name, value))
        for form, definition in forms:
            sections.append(_section(name, form, definition, definitions))
    own = _section("", "", {**schema, "properties": dict(top)}, definitions)
    return (own, *sections) if own.settings else tuple(sections)


def as_toml(sections: Sequence[Section]) -> str:
    """A file whose keys are all comments: each with its meaning, its values and its default."""
    blocks = []
    for section in sections:
        lines = _comment(section.meaning)
        if section.name:
            lines.append(f"[{section.name}]")
        for setting in section.settings:
            if section.form and setting.name == _TAG:
                lines += ["", f"{_TAG} = {_toml(section.form)}"]
                continue
            lines += ["", *_comment(f"{setting.meaning} {_takes(setting)}")]
            lines.append(f"# {setting.name} = {_default_in_words(setting)}")
        blocks.append("\n".join(lines).strip("\n") + "\n")
    return "\n\n".join(blocks)


def as_markdown(sections: Sequence[Section]) -> str:
    """One table a section: key, default, meaning."""
    blocks = []
    for section in sections:
        title = f"`[{section.name}]`" if section.name else "Above all sections"
        if section.form:
            title += f" with `kind = {_toml(section.form)}`"
        rows = [
            f"| `{setting.name}` | {_markdown_default(setting)} | {_cell(f'{setting.meaning} {_takes(setting)}')} |"
            for setting in section.settings
            if not (section.form and setting.name == _TAG)
        ]
        table = ["| key | default | meaning |", "|---|---|---|", *rows]
        blocks.append("\n".join([f"### {title}", "", section.meaning, "", *table]))
    return "\n\n".join(blocks) + "\n"


def _forms(value: Schema, definitions: Schema) -> list[tuple[str, Schema]]:
    """The tables that may stand there: none for a key, one for a section, several for a union of them."""
    if "discriminator" in value:
        mapping = value["discriminator"]["mapping"]
        return [(kind, _resolve(reference, definitions)) for kind, reference in mapping.items()]
    reference = value.get("$ref")
    return [("", _resolve(reference, definitions))] if reference else []


def _section(name: str, form: str, definition: Schema, definitions: Schema) -> Section:
    required = definition.get("required", ())
    settings = tuple(
        Setting(
            name=key,
            values=_values(value, definitions),
            default=None if value.get("default") is None else _toml(value["default"]),
            is_required=key in required,
            meaning=_joined(value.get("description", "")),
        )
        for key, value in sorted(definition["properties"].items(), key=lambda item: item[0] != _TAG)
    )
    return Section(name, form, _joined(definition.get("description", "")), settings)


def _values(value: Schema, definitions: Schema) -> str:
    match value:
        case {"anyOf": alternatives}:
            given = [each for each in alternatives if each.get("type") != "null"]
            return " or ".join(_values(each, definitions) for each in given)
        case {"$ref": reference}:
            keys = _resolve(reference, definitions)["properties"]
            words = "a table { " + ", ".join(f"{key} = ..." for key in keys) + " }"
        case {"const": constant}:
            words = _toml(constant)
        case {"enum": choices}:
            words = " or ".join(map(_toml, choices))
        case {"type": "array", "items": items}:
            words = f"a list, each {_values(items, definitions)}"
        case {"type": "object", "additionalProperties": items}:
            words = f"a table, each value {_values(items, definitions)}"
        case {"format": "path"}:
            words = "a path"
        case {"type": kind}:
            words = _KINDS[kind] + _bounds(value)
    return words


def _bounds(value: Schema) -> str:
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "to {}",
        "exclusiveMaximum": "below {}",
    }
    given = [text.format(_number(value[name])) for name, text in words.items() if name in value]
    return "".join(f" {text}" for text in given)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def _resolve(reference: str, definitions: Schema) -> Schema:
    definition: Schema = definitions[reference.removeprefix(_DEFINITIONS)]
    return definition


def _toml(value: Any) -> str:
    # JSON's text, numbers, truth values, lists and empty tables are TOML's too.
    return json.dumps(value, ensure_ascii=False)


def _default_in_words(setting: Setting) -> str:
    if setting.default is not None:
        return setting.default
    return "... (required)" if setting.is_required else "... (left out)"


def _markdown_default(setting: Setting) -> str:
    if setting.default is not None:
        return f"`{setting.default}`"
    return "required" if setting.is_required else "left out"


def _takes(setting: Setting) -> str:
    return f"Takes {setting.values}."


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _TEXT_WIDTH)]


def _joined(text: str) -> str:
    return " ".join(text.split())
