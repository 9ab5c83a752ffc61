"""How probable lines are to a model: pairs to one that translates, texts to one that generates."""

import contextlib
import math
import os
import stat
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from client.asynchronous import AsyncClient
from client.cli.line_calls import answer_lines, lines_from
from client.cli.lines import Block
from client.results import Task, TextScore
from common.errors import UsageError

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


@dataclass(frozen=True, kw_only=True)
class LineScorer:
    """Scores lines with one model.

    Attributes:
        model: The model's name.
        version: Its version; empty is the highest.
        num_alternatives: Most probable tokens to tell at each place.
        timeout_s: Deadline of each call, and how long a call may be repeated while the server has no room.
        show: Told every line's score, in the lines' order; None is an empty line's.
        progress: Told what is going on, how much of it is done, and of how much.
    """

    model: str
    version: str
    num_alternatives: int
    timeout_s: float
    show: Callable[[list[TextScore | None]], None]
    progress: Callable[[str, float, float], None]

    async def run(self, target: str, source: Sequence[str] | int) -> CorpusScore:
        """Score texts, or the lines of the file with a descriptor.

        Raises:
            UsageError: a line is refused, it says which; or there is nothing to score.
            CallError: the server cannot be reached.
        """
        corpus, num_lines, num_bytes = CorpusScore(), 0, 0
        total_bytes = _num_bytes(source) if isinstance(source, int) else 0
        async with AsyncClient(target, timeout_s=self.timeout_s) as client:
            scored = await self._scored(client, source)
            async with contextlib.aclosing(scored):
                async for block, scores in scored:
                    self.show(scores)
                    for score in filter(None, scores):
                        corpus = corpus.with_score(score)
                    num_lines += len(scores)
                    num_bytes += sum(len(line.encode()) + 1 for line in block.lines)
                    self.progress(f"scoring, {num_lines:,} lines", num_bytes, total_bytes or math.inf)
        if not corpus.num_texts:
            raise UsageError("there is nothing to score: the input holds no text")
        return corpus

    async def _scored(
        self, client: AsyncClient, source: Sequence[str] | int
    ) -> AsyncGenerator[tuple[Block, list[TextScore | None]], None]:
        info = await client.model(self.model, self.version)
        model, version = info.name, info.version  # every line is scored by the same one
        num_alternatives = self.num_alternatives

        async def score_pairs(pairs: list[tuple[str, str]]) -> list[TextScore]:
            sources, targets = zip(*pairs, strict=True)
            return await client.score_translations(
                sources, targets, model=model, version=version, num_alternatives=num_alternatives
            )

        async def score_texts(texts: list[str]) -> list[TextScore]:
            return await client.score_texts(
                texts, model=model, version=version, num_alternatives=num_alternatives
            )

        unit = "line"
        if info.task is Task.TRANSLATION:
            if not isinstance(source, int):
                source, unit = _joined_pairs(source, self.model), "pair"
            return answer_lines(lines_from(source), _pair, score_pairs, unit=unit, timeout_s=self.timeout_s)
        if not isinstance(source, int):
            unit = "text"
        return answer_lines(lines_from(source), str, score_texts, unit=unit, timeout_s=self.timeout_s)


def _pair(line: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise ValueError(f"a source, a tab and its target are 2 columns, not {len(columns)}")
    return columns[0], columns[1]


def _joined_pairs(texts: Sequence[str], model: str) -> list[str]:
    """The lines that hold the arguments SOURCE TARGET, or several such pairs."""
    if len(texts) % 2:
        raise UsageError(f"{model} translates: give a source and its target, not {len(texts)} texts")
    return [f"{source}\t{target}" for source, target in zip(texts[::2], texts[1::2], strict=True)]


def _num_bytes(handle: int) -> int:
    """A plain file's size; what comes through a pipe has none that is known."""
    status = os.fstat(handle)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
