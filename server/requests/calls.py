"""Calls and their answers, free of any transport."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dragoman.server.decoding.hypothesis import FinishReason, TokenScore
from dragoman.server.priority import Priority
from dragoman.server.requests.options import DEFAULT_OPTIONS, Options

__all__ = ["Answer", "Call", "Delta", "OutputToken", "OutputTokens", "Scored", "ScoringCall", "TextAnswer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _AnyCall:
    """The fields that every call has.

    Attributes:
        model: a name.
        version: a number, an alias, or "" for what the model's routes say.
        task: what the called service does; the model must do the same.
        deadline_s: on `time.monotonic()`, or None.
        priority: how soon it gets its turn.
        sticky_key: calls without a version that have the same key get the same version; None: any version.
    """

    model: str
    version: str
    task: str
    deadline_s: float | None = None
    priority: Priority = Priority.NORMAL
    sticky_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(_AnyCall):
    """Answer some inputs.

    Attributes:
        inputs: texts, each answered on its own.
        prefixes: what each answer begins with; none at all for a call without any.
        options: the same for all inputs.
    """

    inputs: Sequence[str]
    prefixes: Sequence[str] = ()
    options: Options = DEFAULT_OPTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringCall(_AnyCall):
    """Tell how probable some texts are.

    Attributes:
        sources: what the texts are translations of; empty for language models.
        texts: to be scored.
        num_alternatives: most probable tokens to return at each place.
    """

    sources: Sequence[str]
    texts: Sequence[str]
    num_alternatives: int = 0


@dataclass(frozen=True, slots=True)
class OutputToken:
    """A token as callers see it; `alternatives` are (id, spelling, log-probability), best first."""

    token_id: int
    token: str
    log_probability: float
    alternatives: tuple[tuple[int, str, float], ...]
    source_index: int | None


class OutputTokens(Protocol):
    """Tokens of an answer: made when they are read."""

    @property
    def ids(self) -> Sequence[int]:
        """The ids of all tokens, the end of sequence included."""

    @property
    def scores(self) -> Iterator[tuple[TokenScore, int | None]]:
        """The figures of all tokens, each with its `source_index`, where these were asked for; else none."""

    def __iter__(self) -> Iterator[OutputToken]:
        """The same, spelled."""


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """One of the answers to an input. The end of sequence counts as an output token."""

    text: str
    finish_reason: FinishReason
    num_output_tokens: int
    log_probability: float
    score: float
    tokens: OutputTokens


@dataclass(frozen=True, slots=True)
class Answer:
    """All answers to an input, best first; `source_tokens` if an alignment was asked for."""

    version: str
    num_input_tokens: int
    texts: tuple[TextAnswer, ...]
    source_tokens: tuple[str, ...]

    @property
    def best(self) -> TextAnswer:
        """The first one."""
        return self.texts[0]

    @property
    def num_output_tokens(self) -> int:
        """The number of tokens of all answers together."""
        return sum(text.num_output_tokens for text in self.texts)


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of input number `index`; the last delta of each input carries its answer."""

    index: int
    text: str
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class Scored:
    """How probable a text is."""

    version: str
    log_probability: float
    perplexity: float
    tokens: OutputTokens
