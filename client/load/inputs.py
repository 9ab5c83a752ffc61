"""The texts that a load run sends."""

import codecs
import json
from pathlib import Path

from dragoman.client.results import ModelInfo
from dragoman.common.errors import UsageError

__all__ = ["lines_of", "read_inputs", "sample_inputs"]

_SHOWN_BYTES = 40

_SAMPLES = {
    "dates": (
        "3 March 2024",
        "Tuesday, July 4th, 1989",
        "le 14 juillet 1789",
        "mercredi 5 juin 2019",
        "3. Oktober 1990",
        "Freitag, 13. Dezember 2019",
        "21 de septiembre de 1956",
        "lunes, 1 de enero de 2001",
        "2 giugno 1946",
        "25 de abril de 1974",
    ),
    "stdlib": (
        "def main(",
        "import os\nimport sys\n\n",
        "class Queue:\n    def __init__(self",
        "    try:\n        ",
        "for name in sorted(",
        '"""Return the ',
    ),
}
"""Inputs that a model trained by the recipe of that name can do something with."""


def sample_inputs(model: ModelInfo) -> tuple[str, ...]:
    """Built-in inputs that fit `model`, by the recipe it was trained with.

    Raises:
        UsageError: there are none for it.
    """
    recipe = model.provenance.get("recipe")
    name = recipe.get("name") if isinstance(recipe, dict) else recipe
    if name not in _SAMPLES:
        raise UsageError(f"there are no built-in inputs for model {model.name!r}; give some with --inputs")
    return _SAMPLES[name]


def read_inputs(path: Path) -> tuple[str, ...]:
    """The lines of a text file, empty ones left out, or the golden examples of a bundle's folder.

    Raises:
        UsageError: it cannot be read, or holds no input.
    """
    try:
        if not path.is_dir():
            return lines_of(path.read_bytes(), str(path))
        manifest = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
        inputs = tuple(example["text"] for example in manifest["golden_examples"])
    except OSError as error:
        raise UsageError(f"cannot read inputs from {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} holds no inputs: {error}") from error
    if not inputs:
        raise UsageError(f"{path} holds no inputs: it has no golden examples")
    return inputs


def lines_of(content: bytes, name: str) -> tuple[str, ...]:
    """The lines of a text, empty ones left out; `name` is where it comes from.

    Raises:
        UsageError: a line is not UTF-8, or there is none.
    """
    lines = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError as error:
            raise UsageError(f"{name}, line {number}: not UTF-8: {line[:_SHOWN_BYTES]!r}") from error
    inputs = tuple(line for line in lines if line.strip())
    if not inputs:
        raise UsageError(f"{name} holds no inputs: it is empty")
    return inputs
