"""What the model thought of a token, for callers who ask."""

import numpy as np
from numpy.typing import NDArray

from server.decoding.candidates import top_candidates
from server.decoding.hypothesis import TokenScore

__all__ = ["token_score"]


def token_score(log_probabilities: NDArray[np.float32], token_id: int, num_alternatives: int) -> TokenScore:
    """The chosen token of a row (V,), with the `num_alternatives` most probable ones."""
    alternatives: tuple[tuple[int, float], ...] = ()
    if num_alternatives:
        values, ids = top_candidates(log_probabilities[None], num_alternatives)
        alternatives = tuple(zip(ids[0].tolist(), values[0].tolist(), strict=True))
    return TokenScore(token_id, float(log_probabilities[token_id]), alternatives)
