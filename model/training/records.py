"""The lines of metrics.jsonl and samples.jsonl: how they are read, and cut back when a training is resumed.

A line of metrics.jsonl has a `step` and either figures by name or an `event`: `started` and `ended` with `facts`
(text by label), or `resumed`. A line of samples.jsonl has a `step` and `samples`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dragoman.common.files import atomic_write
from dragoman.model.errors import RunError

__all__ = ["Sample", "cut_back", "read_records", "to_line"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A held-out input, what is right, and what a model made of it."""

    source: str
    reference: str
    hypothesis: str


def to_line(record: dict[str, Any]) -> bytes:
    """One record as it stands in a file."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, none if it is not there. A last line without its end, torn by a kill, is left out.

    Raises:
        RunError: a line is no record, or the file cannot be read.
    """
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    """Leave the lines up to `step` in the file, and return them.

    Raises:
        RunError: a line is no record, or the file cannot be read.
        OperationError: the file cannot be written.
    """
    kept = [record for record in read_records(path) if record["step"] <= step]
    atomic_write(path, b"".join(map(to_line, kept)))
    return kept


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RunError(f"{path}, line {number}, is no JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise RunError(f"{path}, line {number}, has no step")
    return record
