"""Whether an answer fits into a message: known before it is computed where that is sure, otherwise while it grows."""

from collections.abc import Callable

from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.errors import AnswerTooLarge

__all__ = ["AnswerRoom", "least_bytes"]

# Bytes on the wire at the least (dragoman.v1.Hypothesis, OutputToken, TokenAlternative). Of the tokens at a place one
# at most has the id 0 or a probability of 1, which take no bytes.
_HYPOTHESIS = 10
_TOKEN = 5
_ALTERNATIVE = 12


def least_bytes(parameters: DecodingParameters, vocabulary_size: int) -> int:
    """Bytes that the answer of a sequence has, however early it ends."""
    may_end = bool(parameters.stop) or parameters.limits_choice
    num_tokens = 1 if parameters.stop else max(1, len(parameters.prefix))
    num_hypotheses = 1
    if not may_end:
        num_tokens = max(num_tokens, parameters.min_tokens)
        if vocabulary_size > 4 * parameters.beam_size:  # or a search may run out of ways to go on
            num_hypotheses = min(parameters.num_hypotheses, parameters.beam_size)
    if parameters.num_alternatives is None:
        return num_hypotheses * _HYPOTHESIS
    return num_hypotheses * (_HYPOTHESIS + num_tokens * _least_of_token(parameters.num_alternatives))


class AnswerRoom:
    """The bytes that an answer may have, and those that it has at the least until now."""

    def __init__(self, max_bytes: int, stop: Callable[[], None]) -> None:
        """`stop` is called once when the answer is too large, so that nothing more of it is computed."""
        self._max_bytes = max_bytes
        self._stop = stop
        self._num_bytes = 0

    def take(self, decoded: Decoded) -> None:
        """Add the answers of a sequence."""
        had_room = self._num_bytes <= self._max_bytes
        for hypothesis in decoded.hypotheses:
            self._num_bytes += _HYPOTHESIS + sum(
                _least_of_token(len(token.alternatives)) for token in hypothesis.tokens
            )
        if had_room and self._num_bytes > self._max_bytes:
            self._stop()

    def check(self) -> None:
        """Refuse to go on with an answer that is too large.

        Raises:
            AnswerTooLarge: it is.
        """
        if self._num_bytes > self._max_bytes:
            raise AnswerTooLarge(self._max_bytes)


def _least_of_token(num_alternatives: int) -> int:
    if not num_alternatives:
        return _TOKEN
    return _TOKEN + _TOKEN + _ALTERNATIVE * (num_alternatives - 1)
