"""The log-probabilities of tokens, for callers that ask for them."""

from dragoman.server.decoding.candidates import Predictions

__all__ = ["Alternatives", "alternatives"]

Alternatives = tuple[tuple[int, float], ...]
"""Tokens and their log-probabilities, best first."""


def alternatives(predictions: Predictions, row: int, num_alternatives: int) -> Alternatives:
    """The most probable tokens of a row, of which the step has told at least so many."""
    if not num_alternatives:
        return ()
    token_ids = predictions.token_ids[row, :num_alternatives].tolist()
    return tuple(zip(token_ids, predictions.best[row, :num_alternatives].tolist(), strict=True))
