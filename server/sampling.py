"""Choosing the next token of one row from its log-probabilities.

A request's answer is a function of the request alone: every sampled sequence owns a counter-based generator
(Philox, Salmon et al. 2011) seeded by the request, and draws one number a token.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DecodingParameters", "new_generator", "sample"]

FloatRow = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DecodingParameters:
    """How one sequence is decoded. Values are taken as valid; the runtime checks what callers send.

    Attributes:
        max_tokens: most tokens to produce, the end of sequence included.
        min_tokens: fewest tokens to produce, the end of sequence not included.
        temperature: 0 is greedy.
        top_k: 0 is all.
        top_p: 1 is all.
        seed: used when the temperature is above 0.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def new_generator(parameters: DecodingParameters) -> np.random.Generator:
    """The sequence's own stream of random numbers."""
    return np.random.Generator(np.random.Philox(parameters.seed))


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
