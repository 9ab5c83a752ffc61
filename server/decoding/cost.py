"""The time that a sequence adds to the steps that it takes part in, beside the graph: roughly, and in advance.

The scheduler keeps the sum small for each lane, so that whatever one caller asks for, a step of the others stays short.
"""

from dragoman.server.decoding.parameters import DecodingParameters

__all__ = ["max_step_cost", "step_cost"]

# Microseconds a row on one core of 2024 (AMD EPYC, Zen 4), rounded up; a thousand tokens of the vocabulary more.
_STOP = 20
_ALTERNATIVES = 10
_CONSTRAINED, _CONSTRAINED_PER_THOUSAND = 12, 1
_SUPPRESSED_TEXTS = 20
_SAMPLED, _SAMPLED_PER_THOUSAND = 10, 5
_SORTED_PER_THOUSAND = 20

_ALL_SHARING = 3_000
"""Microseconds a step that a lane may take so, where the model's own step takes less. Lanes that are threads of a
process take turns at Python's lock and wait for each other, so they share it."""
_ONE_LANE = 500
"""A lane may take so many however many share, or it would be left with a row or two."""
_WEIGHTS_PER_US = 200_000
"""Weights that a core multiplies a row with in a microsecond, at the least: int8, many rows."""


def step_cost(parameters: DecodingParameters, vocabulary_size: int) -> int:
    """Microseconds a step of all rows of a sequence; 0 for one that is decoded plainly, greedily or by a search."""
    thousands = -(-vocabulary_size // 1000)
    cost = 0
    if parameters.stop:
        cost += _STOP
    if parameters.num_alternatives:
        cost += _ALTERNATIVES
    if parameters.needs_chooser:
        cost += _CONSTRAINED + _CONSTRAINED_PER_THOUSAND * thousands
    if parameters.suppressed_texts:
        cost += _SUPPRESSED_TEXTS
    if parameters.temperature > 0:
        cost += _SAMPLED + _SAMPLED_PER_THOUSAND * thousands
        if parameters.top_p < 1.0 or parameters.top_k:
            cost += _SORTED_PER_THOUSAND * thousands
    return cost * parameters.beam_size


def max_step_cost(num_parameters: int, slots_per_lane: int, num_sharing: int) -> int:
    """Returns the most that sequences may cost a lane: together as much as a full step takes, or a little.

    `num_sharing` lanes are in one process.
    """
    full_step = num_parameters * slots_per_lane // _WEIGHTS_PER_US
    return max(_ONE_LANE, max(_ALL_SHARING, full_step) // num_sharing)
