"""What may not be chosen next, and what is made less likely. One row at a time, so that neighbours do not matter."""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.suppression import SuppressedTexts

__all__ = ["Constraints"]

FloatRow = NDArray[np.float32]


class Constraints:
    """Changes a row's log-probabilities by what was produced before.

    - `min_tokens`: no end of sequence before.
    - `repetition_penalty` p (Keskar et al. 2019): log-probabilities of tokens that are there already are
      multiplied by p. The paper divides logits, whose sign and size say nothing by themselves; a logarithm of a
      probability is never positive, so that p > 1 always makes a token less likely. transformers does the same in
      beam search.
    - `no_repeat_ngram_size` n: no run of n tokens comes a second time.
    - `suppressed_token_ids`: none of these.
    - `suppressed_texts`: nothing that would complete such a text, however it is cut into tokens.
    """

    def __init__(
        self,
        parameters: DecodingParameters,
        end: int,
        context: Sequence[int],
        *,
        never: Sequence[int] = (),
        suppressed_texts: SuppressedTexts | None = None,
    ) -> None:
        """Make the constraints of one sequence.

        Args:
            parameters: say what is asked for.
            end: the end of sequence's id.
            context: is read before the output and counts as repeated.
            never: tokens that nothing makes possible.
            suppressed_texts: made of those of `parameters`.
        """
        self._never = _array((*never, *parameters.suppressed_token_ids))
        self._min_tokens = parameters.min_tokens
        self._repetition_penalty = parameters.repetition_penalty
        self._ngram_size = parameters.no_repeat_ngram_size
        self._suppressed_texts = suppressed_texts
        self._limits_choice = parameters.limits_choice
        self._end = end
        self._context = tuple(context)

    def adjusted(self, log_probabilities: FloatRow, token_ids: Sequence[int]) -> FloatRow:
        """A copy of a row (V,) as `adjust` leaves it."""
        row = log_probabilities.copy()
        self.adjust(row, token_ids)
        return row

    def adjust(self, row: FloatRow, token_ids: Sequence[int]) -> None:
        """Change a row (V,) to what it is after the output tokens `token_ids`.

        Where nothing may be chosen any more, the end of sequence may.
        """
        end_log_probability = row[self._end]
        row[self._never] = -np.inf
        history = [*self._context, *token_ids]
        if self._repetition_penalty != 1.0 and history:
            row[list(set(history))] *= np.float32(self._repetition_penalty)
        if self._ngram_size:
            row[_completions(history, self._ngram_size)] = -np.inf
        if self._suppressed_texts is not None:
            self._suppressed_texts.forbid(row, token_ids, continues=bool(self._context))
        if len(token_ids) < self._min_tokens:
            row[self._end] = -np.inf
        if self._limits_choice and row.max() == -np.inf:
            row[self._end] = end_log_probability


@functools.lru_cache(maxsize=64)
def _array(token_ids: tuple[int, ...]) -> NDArray[np.int64]:
    """Those of one call are the same for all its sequences."""
    return np.array(token_ids, np.int64)


def _completions(history: list[int], size: int) -> list[int]:
    """Tokens that would complete a run of `size` tokens that is in `history` already."""
    if size == 1:
        return history
    beginning = history[len(history) - size + 1 :]
    if len(history) < size:
        return []
    found = []
    place, end = size - 2, len(history) - 1
    while beginning[-1] in history[place:end]:
        place = history.index(beginning[-1], place, end)
        if history[place - size + 2 : place + 1] == beginning:
            found.append(history[place + 1])
        place += 1
    return found
