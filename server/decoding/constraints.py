"""The tokens that may not be chosen next, and those that are made less likely. One row at a time: neighbours do
not matter.
"""

import copy
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.repeats import Repeats
from dragoman.server.decoding.suppression import SuppressedTexts

__all__ = ["Constraints"]

FloatRow = NDArray[np.float32]


class Constraints:
    """Changes a row's log-probabilities by what was produced before. For one output, which grows at its end.

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
        self._continues = bool(context)
        self.repeats: Repeats | None = None
        if self._repetition_penalty != 1.0 or self._ngram_size:
            self.repeats = Repeats.of(context, self._ngram_size)
        self._num_followed = 0  # tokens of the output that `repeats` has

    def fork(self) -> "Constraints":
        """The same for an output that has been the same until now, and goes on by itself."""
        fork = copy.copy(self)
        if self.repeats is not None:
            fork.repeats = self.repeats.fork()
        return fork

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
        if self.repeats is not None:
            self._adjust_repeats(row, token_ids, self.repeats)
        if self._suppressed_texts is not None:
            self._suppressed_texts.forbid(row, token_ids, continues=self._continues)
        if len(token_ids) < self._min_tokens:
            row[self._end] = -np.inf
        if self._limits_choice and row.max() == -np.inf:
            row[self._end] = end_log_probability

    def _adjust_repeats(self, row: FloatRow, token_ids: Sequence[int], repeats: Repeats) -> None:
        for token_id in token_ids[self._num_followed :]:
            repeats.append(token_id)
        self._num_followed = len(token_ids)
        if self._repetition_penalty != 1.0:
            row[repeats.seen] *= np.float32(self._repetition_penalty)
        if self._ngram_size:
            row[repeats.completing] = -np.inf


@functools.lru_cache(maxsize=64)
def _array(token_ids: tuple[int, ...]) -> NDArray[np.int64]:
    """Returns the ids as an array. The ids of one call are the same for all its sequences, so the array is kept."""
    return np.array(token_ids, np.int64)
