"""Choosing the next tokens of rows from their log-probabilities.

A request's answer is a function of the request alone: every sampled sequence owns a counter-based generator
(Philox, Salmon et al. 2011) seeded by the request, and draws one number a token. Rows that are chosen from together
get what each gets alone: all is computed within a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman.server.decoding.constraints import Constraints
from dragoman.server.decoding.parameters import DecodingParameters

__all__ = ["Choice", "TokenChooser", "choose_all", "new_generator", "sample"]

FloatRow = NDArray[np.float32]

_MAX_TOGETHER = 1 << 16
"""Values that are sorted or summed at a time: more do not stay in a core's cache."""


class TokenChooser:
    """Chooses for a row that is not plainly greedy: a prefix is forced, something is forbidden, tokens are drawn."""

    def __init__(self, parameters: DecodingParameters, constraints: Constraints) -> None:
        self.parameters = parameters
        self.constraints = constraints
        self.generator = new_generator(parameters) if parameters.temperature > 0 else None

    def forced(self, token_ids: Sequence[int]) -> int | None:
        """The token that has to come after the output tokens `token_ids`, if one has."""
        prefix = self.parameters.prefix
        return prefix[len(token_ids)] if len(token_ids) < len(prefix) else None


class Choice(NamedTuple):
    """A row in which a chooser has to choose the token after the output tokens `token_ids`."""

    row: int
    chooser: TokenChooser
    token_ids: Sequence[int]


def choose_all(choices: Sequence[Choice], log_probabilities: FloatRow) -> list[int]:
    """The token of each choice, from all rows' log-probabilities (B, V), which stay as they are."""
    chosen = [choice.chooser.forced(choice.token_ids) for choice in choices]
    free = [place for place, token_id in enumerate(chosen) if token_id is None]
    together: dict[tuple[float, int, float], list[int]] = {}
    for place in free:
        parameters = choices[place].chooser.parameters
        alike = (parameters.temperature, parameters.top_k, parameters.top_p)
        together.setdefault(alike, []).append(place)
    most = max(1, _MAX_TOGETHER // log_probabilities.shape[1])
    for places in together.values():
        for start in range(0, len(places), most):
            group = places[start : start + most]
            for place, token_id in zip(
                group, _choose([choices[place] for place in group], log_probabilities), strict=True
            ):
                chosen[place] = token_id
    return [token_id for token_id in chosen if token_id is not None]


def _choose(choices: Sequence[Choice], log_probabilities: FloatRow) -> list[int]:
    """The tokens of choices that are made in the same way."""
    rows = log_probabilities[[choice.row for choice in choices]]  # a copy
    for row, choice in zip(rows, choices, strict=True):
        choice.chooser.constraints.adjust(row, choice.token_ids)
    uniforms = [each.chooser.generator.random() for each in choices if each.chooser.generator is not None]
    parameters = choices[0].chooser.parameters
    chosen = sample(rows, parameters, np.array(uniforms)) if uniforms else rows.argmax(axis=1)
    return [int(token_id) for token_id in chosen]


def new_generator(parameters: DecodingParameters) -> np.random.Generator:
    """The sequence's own stream of random numbers."""
    seed: int | np.random.SeedSequence = parameters.seed
    if parameters.sample:
        seed = np.random.SeedSequence(parameters.seed, spawn_key=(parameters.sample,))
    return np.random.Generator(np.random.Philox(seed))


def sample(
    log_probabilities: FloatRow, parameters: DecodingParameters, uniforms: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Draw tokens from softmax(log_probabilities / temperature), cut to top_k, then to top_p.

    Args:
        log_probabilities: (B, V), may hold -inf for forbidden tokens.
        parameters: with temperature above 0.
        uniforms: (B,) numbers in [0, 1).

    Returns:
        (B,) token ids. Ties are ordered by id, so equal inputs give equal draws.
    """
    candidates = _candidates(log_probabilities, parameters)
    values = log_probabilities if candidates is None else np.take_along_axis(log_probabilities, candidates, 1)
    scaled = values.astype(np.float64) / parameters.temperature
    cumulative = np.exp(scaled - scaled.max(axis=1, keepdims=True)).cumsum(axis=1)
    totals = cumulative[:, -1]
    rows, last = np.arange(len(values)), values.shape[1] - 1
    if parameters.top_p < 1.0:
        places = (cumulative < (parameters.top_p * totals)[:, None]).sum(axis=1)
        totals = cumulative[rows, np.minimum(places, last)]
    places = np.minimum((cumulative <= (uniforms * totals)[:, None]).sum(axis=1), last)
    return np.asarray(places if candidates is None else candidates[rows, places])


def _candidates(log_probabilities: FloatRow, parameters: DecodingParameters) -> NDArray[np.int64] | None:
    """(B, K) tokens that may be drawn: the top_k by id or, with a top_p, by probability; None: all by id."""
    size = log_probabilities.shape[1]
    top_k = parameters.top_k if 0 < parameters.top_k < size else size
    if top_k == size and parameters.top_p >= 1.0:
        return None
    keys = _descending(log_probabilities)
    if top_k < size:
        keys = np.partition(keys, top_k - 1, axis=1)[:, :top_k]
    if parameters.top_p < 1.0:
        return _token_ids(np.sort(keys, axis=1))
    return np.sort(_token_ids(keys), axis=1)


def _descending(log_probabilities: FloatRow) -> NDArray[np.uint64]:
    """Keys (B, V) whose order is by falling value, then by token: numbers sort several times as fast as places do."""
    bits = (log_probabilities + np.float32(0)).view(np.uint32)  # and no zero below 0
    # As unsigned numbers the bits of floats rise with those above 0 and fall with those below.
    rising = bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    keys = (~rising).astype(np.uint64) << np.uint64(32)
    return keys | np.arange(bits.shape[1], dtype=np.uint64)


def _token_ids(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
