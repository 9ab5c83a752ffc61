"""A step of all beam searches of a lane: the best continuations of all their beams are looked for at once."""

import math
from collections.abc import Sequence

import numpy as np

from dragoman.server.decoding.beam import BeamSearch, Candidate, FloatRows, Fork
from dragoman.server.decoding.candidates import Predictions, best_of_groups
from dragoman.server.decoding.hypothesis import Hypothesis

__all__ = ["advance_all"]


def advance_all(
    searches: Sequence[BeamSearch], predictions: Predictions
) -> list[tuple[list[Fork], tuple[Hypothesis, ...] | None]]:
    """`BeamSearch.advance` of each, looking for the best tokens of all their beams at once."""
    choosing = [search for search in searches if not search.is_forced]
    free = [search for search in choosing if search.constraints is None]
    constrained = [search for search in choosing if search.constraints is not None]
    best = dict(zip(map(id, free), _best_returned(free, predictions), strict=True))
    best |= zip(map(id, constrained), _best_found(constrained, predictions.log_probabilities), strict=True)
    return [search.advance(predictions, best.get(id(search))) for search in searches]


def _best_returned(searches: Sequence[BeamSearch], predictions: Predictions) -> list[list[Candidate]]:
    """For each search its best continuations, best first, equal ones by beam, then by token.

    They are among the best of each of its beams, which the step returned. Searches with as many beams are sorted at
    once.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for index, search in enumerate(searches):
        alike.setdefault((len(search.beams), search.num_best), []).append(index)
    found: list[list[Candidate]] = [[]] * len(searches)
    for (_, num_best), indices in alike.items():
        group = [searches[index] for index in indices]
        for index, best in zip(indices, _best_alike(group, num_best, predictions), strict=True):
            found[index] = best
    return found


def _best_alike(
    searches: Sequence[BeamSearch], num_best: int, predictions: Predictions
) -> list[list[Candidate]]:
    beams = [beam for search in searches for beam in search.beams]
    rows = [beam.row for beam in beams]
    token_ids = predictions.token_ids[rows, :num_best]
    # Added in float64: the order of a long sum is right.
    totals = np.array([beam.total for beam in beams])[:, None] + predictions.best[rows, :num_best]
    num_returned = totals.shape[1]
    size = num_returned * len(searches[0].beams)
    for index, search in enumerate(searches):
        if len(search.beams[0].token_ids) < search.parameters.min_tokens:
            its_own = slice(index * len(search.beams), (index + 1) * len(search.beams))
            totals[its_own][token_ids[its_own] == search.end] = -np.inf
    order = (-totals.reshape(-1, size)).argsort(axis=1, kind="stable")[:, :num_best]
    indices = order + np.arange(0, totals.size, size)[:, None]
    best = zip(
        totals.ravel()[indices].tolist(),
        (order // num_returned).tolist(),
        token_ids.ravel()[indices].tolist(),
        strict=True,
    )
    return [_possible(list(zip(*of_search, strict=True))) for of_search in best]


def _possible(candidates: list[Candidate]) -> list[Candidate]:
    """Without the impossible ones, which come last."""
    while candidates and not candidates[-1][0] > -math.inf:
        candidates.pop()
    return candidates


def _best_found(searches: Sequence[BeamSearch], log_probabilities: FloatRows) -> list[list[Candidate]]:
    """The same where constraints change the log-probabilities of the step."""
    if not searches:
        return []
    beams = [beam for search in searches for beam in search.beams]
    rows = log_probabilities[[beam.row for beam in beams]]
    start = 0
    for search in searches:
        search.adjust(rows[start : start + len(search.beams)])
        start += len(search.beams)
    num_best = max(search.num_best for search in searches)
    best = best_of_groups(
        rows, [beam.total for beam in beams], [len(search.beams) for search in searches], num_best
    )
    totals, parents, token_ids = best.totals.tolist(), best.rows.tolist(), best.token_ids.tolist()
    starts = np.cumsum([0, *(len(search.beams) for search in searches)]).tolist()
    return [
        _possible(
            [
                (totals[index], parents[index] - start, token_ids[index])
                for index in range(first, min(first + search.num_best, last))
            ]
        )
        for search, start, first, last in zip(
            searches, starts, best.starts.tolist(), best.starts[1:].tolist(), strict=False
        )
    ]
