"""How probable lines are to a model: pairs to one that translates, texts to one that generates."""

import contextlib
import math
import os
import stat
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dragoman.cli.line_calls import LineAnswers, LineCalls, lines_from
from dragoman.cli.model_source import ModelSource
from dragoman.client.asynchronous import AsyncClient
from dragoman.client.results import Task, TextScore
from dragoman.common.errors import UsageError

__all__ = ["CorpusScore", "LineScorer"]


@dataclass(frozen=True)
class CorpusScore:
    """The scores of many texts as one."""

    num_texts: int = 0
    num_tokens: int = 0
    log_probability: float = 0.0

    @property
    def perplexity(self) -> float:
        """exp(-log_probability / num_tokens): a long text weighs more than a short one."""
        return math.exp(-self.log_probability / self.num_tokens)

    def with_score(self, score: TextScore) -> "CorpusScore":
        """The corpus and one more text."""
        return CorpusScore(
            self.num_texts + 1,
            self.num_tokens + len(score.tokens),
            self.log_probability + score.log_probability,
        )


Pair = tuple[str, str]
"""A source and its translation."""


@dataclass(frozen=True, kw_only=True)
class LineScorer:
    """Scores lines with one model.

    Attributes:
        source: The model.
        num_alternatives: Most probable tokens to tell at each place.
        separator: What stands between a source and its translation in a line.
        skips_bad: Whether a line that cannot be scored is skipped; see `LineCalls`.
        show: Told the answers of every block of lines, in the lines' order.
        progress: Told what is going on, how much of it is done, and of how much.
    """

    source: ModelSource
    num_alternatives: int = 0
    separator: str = "\t"
    skips_bad: bool = False
    show: Callable[[LineAnswers[TextScore]], None]
    progress: Callable[[str, float, float], None]

    async def run(self, lines: Sequence[str] | int) -> CorpusScore:
        """Score texts, or the lines of the file with a descriptor.

        Raises:
            UsageError: a line cannot be scored and is not skipped, it says which; or there is nothing to score.
            CallError: the server cannot be reached.
        """
        corpus, num_lines, num_bytes = CorpusScore(), 0, 0
        total_bytes = _num_bytes(lines) if isinstance(lines, int) else 0
        async with (
            self.source.connect() as client,
            contextlib.aclosing(await self._scored(client, lines)) as scored,
        ):
            async for each in scored:
                self.show(each)
                for score in each.answers:
                    if isinstance(score, TextScore):
                        corpus = corpus.with_score(score)
                num_lines += len(each.answers)
                num_bytes += each.block.num_bytes
                self.progress(f"scoring, {num_lines:,} lines", num_bytes, total_bytes or math.inf)
        if not corpus.num_texts:
            raise UsageError("there is nothing to score: the input holds no text")
        return corpus

    async def _scored(
        self, client: AsyncClient, lines: Sequence[str] | int
    ) -> AsyncGenerator[LineAnswers[TextScore], None]:
        info = await client.model(self.source.model, self.source.version)
        model, version = info.name, info.version  # every line is scored by the same one
        num_alternatives, priority = self.num_alternatives, self.source.priority

        async def score_pairs(pairs: list[Pair]) -> list[TextScore]:
            sources, targets = zip(*pairs, strict=True)
            return await client.score_translations(
                sources,
                targets,
                model=model,
                version=version,
                num_alternatives=num_alternatives,
                priority=priority,
            )

        async def score_texts(texts: list[str]) -> list[TextScore]:
            return await client.score_texts(
                texts, model=model, version=version, num_alternatives=num_alternatives, priority=priority
            )

        shared: dict[str, Any] = {"timeout_s": self.source.timeout_s, "skips_bad": self.skips_bad}
        if info.task is not Task.TRANSLATION:
            unit = "line" if isinstance(lines, int) else "text"
            texts = LineCalls(parse=str, ask=score_texts, unit=unit, **shared)
            return texts.run(lines_from(lines))
        if isinstance(lines, int):
            pairs = LineCalls(parse=self._pair, ask=score_pairs, unit="line", **shared)
            return pairs.run(lines_from(lines))
        if len(lines) % 2:
            raise UsageError(f"{info.name} translates: give a source and its target, not {len(lines)} texts")
        # Arguments stand apart already, whatever they hold: what is parsed is only a pair's number.
        given = list(zip(lines[::2], lines[1::2], strict=True))
        numbers = [str(number) for number in range(len(given))]
        pairs = LineCalls(parse=lambda number: given[int(number)], ask=score_pairs, unit="pair", **shared)
        return pairs.run(lines_from(numbers))

    def _pair(self, line: str) -> Pair:
        columns = line.split(self.separator)
        if len(columns) != 2:
            name = "a tab" if self.separator == "\t" else repr(self.separator)
            raise ValueError(f"a source, {name} and its target are 2 columns, not {len(columns)}")
        return columns[0], columns[1]


def _num_bytes(handle: int) -> int:
    """A plain file's size; what comes through a pipe has none that is known."""
    status = os.fstat(handle)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
