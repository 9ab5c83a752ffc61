"""What an installation of the project brings, as pyproject.toml says it now."""

import functools
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["PROJECT", "distributions_of", "requirements_of"]

_ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements_of(*extras: str) -> list[Requirement]:
    """What the project itself names: its dependencies and those of the extras."""
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    named = [Requirement(line) for line in lines]
    own = [each for each in named if each.name == "dragoman"]
    others = [each for each in named if each.name != "dragoman"]
    return others + [each for one in own for each in requirements_of(*one.extras)]


@functools.cache
def distributions_of(*extras: str, without: tuple[str, ...] = ()) -> frozenset[str]:
    """All distributions that an installation with these extras brings, by normalised name.

    `without`: distributions that are left out, with all that only they need.
    """
    waiting = [(each.name, frozenset(each.extras)) for each in requirements_of(*extras)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        current = waiting.pop()
        if current in seen or canonicalize_name(current[0]) in without:
            continue
        seen.add(current)
        name, chosen = current
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": each}) for each in (*chosen, "")
            ):
                waiting.append((needed.name, frozenset(needed.extras)))
    return frozenset(canonicalize_name(name) for name, _ in seen)
