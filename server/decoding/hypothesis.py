"""The results of decoding: plain data, as it leaves a lane."""

import math
from enum import Enum, auto

import msgspec

__all__ = ["Decoded", "FinishReason", "Hypothesis", "TokenScore", "perplexity"]


def perplexity(log_probability: float, num_tokens: int) -> float:
    """exp of the mean negative log-probability of a text's tokens."""
    try:
        return math.exp(-log_probability / num_tokens)
    except OverflowError:
        return math.inf


class FinishReason(Enum):
    """Why a sequence ended by itself."""

    END_OF_SEQUENCE = auto()
    STOP_STRING = auto()
    LENGTH = auto()


# An answer may have hundreds of thousands of these, none of them in a cycle: the collector need not look at them.
class TokenScore(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One token of an answer under the model's own distribution, before any option changes it.

    Attributes:
        token_id: the token that was chosen.
        log_probability: its natural logarithm.
        alternatives: the most probable tokens at its place with theirs, best first.
    """

    token_id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


class Hypothesis(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A whole answer.

    Attributes:
        token_ids: without the end of sequence.
        finish_reason: why it ended.
        log_probability: sum over the chosen tokens, the end of sequence included, under the model's own
            distribution.
        num_output_tokens: tokens chosen, the end of sequence included.
        score: what hypotheses of one input are ranked by.
        tokens: each chosen token, the end of sequence included, if that was asked for.
        alignment: for each of `token_ids` the place of the input token that it looks at most, if that was
            asked for.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    log_probability: float
    num_output_tokens: int
    score: float
    tokens: tuple[TokenScore, ...] = ()
    alignment: tuple[int, ...] = ()

    def with_end(self, end: int) -> list[int]:
        """`token_ids`, and the token `end` behind them where the model ended the sequence itself."""
        ended = self.finish_reason is FinishReason.END_OF_SEQUENCE
        return [*self.token_ids, *([end] if ended else [])]

    @property
    def is_cut_off(self) -> bool:
        """Whether the limit of tokens ended it."""
        return self.finish_reason is FinishReason.LENGTH


class Decoded(msgspec.Struct, frozen=True, array_like=True):
    """The answers to one input, best first; at least one."""

    hypotheses: tuple[Hypothesis, ...]

    @property
    def best(self) -> Hypothesis:
        """The first one."""
        return self.hypotheses[0]
