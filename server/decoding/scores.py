"""What the model thought of a token, for callers who ask."""

import numpy as np
from numpy.typing import NDArray

from server.decoding.candidates import best_of_groups
from server.decoding.hypothesis import TokenScore

__all__ = ["token_score"]


def token_score(log_probabilities: NDArray[np.float32], token_id: int, num_alternatives: int) -> TokenScore:
    """The chosen token of a row (V,), with the `num_alternatives` most probable ones."""
    alternatives: tuple[tuple[int, float], ...] = ()
    if num_alternatives:
        best = best_of_groups(log_probabilities[None], [0.0], [1], num_alternatives)
        alternatives = tuple(zip(best.token_ids.tolist(), best.totals.tolist(), strict=True))[
            :num_alternatives
        ]
    return TokenScore(token_id, float(log_probabilities[token_id]), alternatives)
