"""Choosing the next token of one row from its log-probabilities.

A request's answer is a function of the request alone: every sampled sequence owns a counter-based generator
(Philox, Salmon et al. 2011) seeded by the request, and draws one number a token.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.decoding.constraints import Constraints
from server.decoding.parameters import DecodingParameters

__all__ = ["TokenChooser", "new_generator", "sample"]

FloatRow = NDArray[np.float32]


class TokenChooser:
    """Chooses for a row that is not plainly greedy: a prefix is forced, something is forbidden, tokens are drawn."""

    def __init__(self, parameters: DecodingParameters, constraints: Constraints) -> None:
        self._parameters = parameters
        self._constraints = constraints
        self._generator = new_generator(parameters) if parameters.temperature > 0 else None

    @staticmethod
    def is_needed(parameters: DecodingParameters) -> bool:
        """Whether the token of highest probability is not always the one, but for an end that comes too early."""
        return (
            parameters.temperature > 0
            or bool(parameters.prefix)
            or Constraints.are_more_than_length(parameters)
        )

    def choose(self, log_probabilities: FloatRow, token_ids: Sequence[int]) -> int:
        """The token after the output tokens `token_ids`, from a row (V,)."""
        if len(token_ids) < len(self._parameters.prefix):
            return self._parameters.prefix[len(token_ids)]
        log_probabilities = self._constraints.adjusted(log_probabilities, token_ids)
        if self._generator is not None:
            return sample(log_probabilities, self._parameters, self._generator.random())
        return int(log_probabilities.argmax())


def new_generator(parameters: DecodingParameters) -> np.random.Generator:
    """The sequence's own stream of random numbers."""
    seed: int | np.random.SeedSequence = parameters.seed
    if parameters.stream:
        seed = np.random.SeedSequence(parameters.seed, spawn_key=(parameters.stream,))
    return np.random.Generator(np.random.Philox(seed))


def sample(log_probabilities: FloatRow, parameters: DecodingParameters, uniform: float) -> int:
    """Draw a token from softmax(log_probabilities / temperature), cut to top_k, then to top_p.

    Args:
        log_probabilities: (V,), may hold -inf for forbidden tokens.
        parameters: with temperature above 0.
        uniform: a number in [0, 1).

    Returns:
        The token's id. Ties are ordered by id, so equal inputs give equal draws.
    """
    if 0 < parameters.top_k < log_probabilities.size:
        candidates = np.sort(np.argpartition(log_probabilities, -parameters.top_k)[-parameters.top_k :])
    else:
        candidates = np.arange(log_probabilities.size)
    if parameters.top_p < 1.0:
        candidates = candidates[np.argsort(-log_probabilities[candidates], kind="stable")]
    scaled = log_probabilities[candidates].astype(np.float64) / parameters.temperature
    cumulative = np.cumsum(np.exp(scaled - scaled.max()))
    total = cumulative[-1]
    if parameters.top_p < 1.0:
        last = int(np.searchsorted(cumulative, parameters.top_p * total))
        total = cumulative[min(last, candidates.size - 1)]
    index = int(np.searchsorted(cumulative, uniform * total, side="right"))
    return int(candidates[min(index, candidates.size - 1)])
