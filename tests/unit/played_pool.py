"""Runs over files without a model: answers are the texts in capitals."""

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.integration.serving import BUNDLES

from dragoman.client.results import DecodingOptions
from dragoman.files import run
from dragoman.files.answers import AnswerRow, AnswerText, Outcome, Refusal
from dragoman.files.job import WHOLE, Share
from dragoman.files.protocol import Begin, Block
from dragoman.files.run import FileRun, Summary

__all__ = ["answer", "contents", "play_pool"]

_Item = TypeVar("_Item")
SPELL = BUNDLES / "spell" / "2"


class PlayedProcesses:
    """Two workers, which nobody asks."""

    workers = (None, None)


class PlayedPool:
    """What a `Pool` does, in this process. A text that holds "!" is refused."""

    begun: Begin | None = None

    def __init__(self, begin: Begin, processes: object) -> None:
        PlayedPool.begun = begin

    def map(
        self, items: Iterable[_Item], block_of: Callable[[_Item, int], Block]
    ) -> Generator[tuple[_Item, list[Outcome]]]:
        for item in items:
            yield item, [_outcome(text) for text in block_of(item, 0).texts]


def _outcome(text: str | None) -> Outcome:
    if not text:
        return None
    if "!" in text:
        return Refusal("is loud")
    return AnswerRow((AnswerText(text.upper(), -0.5, -1.0, "end_of_sequence"),))


def play_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs use it."""
    monkeypatch.setattr(run, "Pool", PlayedPool)


def answer(
    *inputs: Path | str,
    out: Path | str,
    rows_per_part: int = 4,
    share: Share = WHOLE,
    progress: Callable[[str, float, float], None] = lambda *_: None,
    **changed: Any,
) -> Summary:
    """Run over files."""
    summary = Summary()
    settings: dict[str, Any] = {
        "task": "translation",
        "bundle": SPELL,
        "input_column": "text",
        "output_column": "translation",
        "options": DecodingOptions(),
        **changed,
    }
    settings |= {
        "inputs": list(map(str, inputs)),
        "out": str(out),
        "rows_per_part": rows_per_part,
        "share": share,
    }
    FileRun(**settings).run(PlayedProcesses(), progress, summary)  # type: ignore[arg-type]
    return summary


def contents(folder: Path) -> dict[str, bytes]:
    """All files that a run wrote, but for its own records."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "_dragoman" not in path.parts
    }
