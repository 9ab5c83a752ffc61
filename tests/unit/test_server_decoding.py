"""Candidates, constraints and beam search, held against sorting, brute force and exhaustive search."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dragoman.server.decoding.beam import BeamSearch
from dragoman.server.decoding.beam_step import advance_all
from dragoman.server.decoding.candidates import Predictions, best_of_groups, best_of_rows
from dragoman.server.decoding.constraints import Constraints
from dragoman.server.decoding.hypothesis import FinishReason, Hypothesis
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.ranking import coverage_penalty, ranked

END = 3


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 700),
    st.integers(1, 12),
    st.booleans(),
)
def test_the_best_of_groups_are_those_of_a_sort(
    seed: int, group_sizes: list[int], size: int, num_best: int, coarse: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((sum(group_sizes), size)).astype(np.float32)
    bases = rng.standard_normal(len(rows))
    if coarse:  # many ties, and much that is forbidden
        rows = np.where(rows < 0, -np.inf, np.round(rows)).astype(np.float32)
        bases = np.round(bases)
    best = best_of_groups(rows, bases.tolist(), group_sizes, num_best)
    first_row = 0
    for group, group_size in enumerate(group_sizes):
        places = [(row, token) for row in range(first_row, first_row + group_size) for token in range(size)]
        totals = {(row, token): bases[row] + float(rows[row, token]) for row, token in places}
        expected = sorted(places, key=lambda place: (-totals[place], place))[:num_best]
        found = slice(best.starts[group], best.starts[group + 1])
        assert len(expected) == min(num_best, len(places))
        assert list(zip(best.rows[found], best.token_ids[found], strict=True))[:num_best] == expected
        assert best.totals[found][:num_best].tolist() == [totals[place] for place in expected]
        first_row += group_size
    assert best.starts[-1] == len(best.totals)


def adjusted(token_ids: list[int], context: tuple[int, ...] = (), **options: object) -> NDArray[np.float32]:
    parameters = DecodingParameters(max_tokens=50, **options)  # type: ignore[arg-type]
    assert parameters.min_tokens or parameters.is_constrained
    row = np.full(8, -2.0, np.float32)
    after = Constraints(parameters, END, context).adjusted(row, token_ids)
    assert (row == -2.0).all(), "the model's own figures stay as they are"
    return after


def forbidden(row: NDArray[np.float32]) -> list[int]:
    return np.nonzero(row == -np.inf)[0].tolist()


def test_no_end_before_the_minimum() -> None:
    assert forbidden(adjusted([5], min_tokens=2)) == [END]
    assert forbidden(adjusted([5, 6], min_tokens=2)) == []


def test_what_is_there_becomes_less_likely_whatever_its_sign_was() -> None:
    row = adjusted([5, 6, 5], context=(7,), repetition_penalty=1.5)
    assert row.tolist() == [-2, -2, -2, -2, -2, -3, -3, -3]


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_no_ngram_comes_twice(token_ids: list[int], size: int) -> None:
    banned = forbidden(adjusted(token_ids, no_repeat_ngram_size=size))
    ngrams = [tuple(token_ids[start : start + size]) for start in range(len(token_ids) - size + 1)]
    expected = {
        token
        for token in range(8)
        if len(token_ids) >= size - 1 and tuple([*token_ids, token][-size:]) in ngrams
    }
    assert set(banned) == expected


def test_suppressed_tokens_are_never_chosen() -> None:
    assert forbidden(adjusted([], suppressed_token_ids=(4, 6))) == [4, 6]
    assert forbidden(adjusted([5, 4], suppressed_token_ids=(4,))) == [4]


def test_where_nothing_may_be_chosen_the_sequence_may_end() -> None:
    row = adjusted([], suppressed_token_ids=tuple(range(8)))
    assert forbidden(row) == [0, 1, 2, 4, 5, 6, 7]
    assert row[END] == -2.0


class Markov:
    """Rows whose next token depends on all that was read, and that say so when a copy went wrong."""

    def __init__(self, seed: int, vocabulary_size: int, num_rows: int) -> None:
        self.size, self.seed = vocabulary_size, seed
        self.histories: list[tuple[int, ...]] = [()] * num_rows

    def after(self, history: tuple[int, ...]) -> NDArray[np.float32]:
        rng = np.random.default_rng([self.seed, *(token + 1 for token in history)])
        logits = rng.standard_normal(self.size) * 1.5
        row: NDArray[np.float32] = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        return row

    def log_probability(self, tokens: tuple[int, ...]) -> float:
        return math.fsum(float(self.after(tokens[:place])[token]) for place, token in enumerate(tokens))

    def run(self, search: BeamSearch) -> tuple[Hypothesis, ...]:
        while True:
            rows = np.stack([self.after(history) for history in self.histories])
            predictions = Predictions(rows, *best_of_rows(rows, min(search.num_best, self.size)))
            [(forks, answers)] = advance_all([search], predictions)
            if answers is not None:
                return answers
            before = list(self.histories)
            for fork in forks:
                assert before[fork.source] == self.histories[fork.source], (
                    "a row is read after it was written"
                )
                self.histories[fork.target] = self.histories[fork.source]
            for row, token in search.next_tokens():
                self.histories[row] = (*self.histories[row], token)
            assert [self.histories[beam.row] for beam in search.beams] == [
                beam.token_ids for beam in search.beams
            ]


def search_for(parameters: DecodingParameters, rows: list[int] | None = None) -> BeamSearch:
    needed = parameters.is_constrained
    constraints = Constraints(parameters, END, ()) if needed else None
    return BeamSearch(parameters, END, rows or list(range(parameters.beam_size)), constraints)


def all_sequences(vocabulary_size: int, max_tokens: int) -> list[tuple[int, ...]]:
    return [
        tokens
        for length in range(1, max_tokens + 1)
        for tokens in itertools.product(range(vocabulary_size), repeat=length)
        if tokens[-1] == END and END not in tokens[:-1]
    ]


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(seed: int, length_penalty: float) -> None:
    model = Markov(seed, vocabulary_size=4, num_rows=27)
    parameters = DecodingParameters(
        max_tokens=4, beam_size=27, patience=8.0, num_hypotheses=5, length_penalty=length_penalty
    )
    answers = model.run(search_for(parameters))
    scores = {
        tokens: model.log_probability(tokens) / len(tokens) ** length_penalty
        for tokens in all_sequences(4, 4)
    }
    expected = sorted(scores, key=lambda tokens: -scores[tokens])[:5]
    assert [(*answer.token_ids, END) for answer in answers[:5]] == expected
    assert [answer.score for answer in answers[:5]] == pytest.approx([scores[tokens] for tokens in expected])
    assert {answer.finish_reason for answer in answers[:5]} == {FinishReason.END_OF_SEQUENCE}


@pytest.mark.parametrize("seed", range(8))
def test_a_search_in_any_rows_is_the_same_search(seed: int) -> None:
    parameters = DecodingParameters(max_tokens=12, beam_size=4, num_hypotheses=4, no_repeat_ngram_size=2)
    first = Markov(seed, 9, 4).run(search_for(parameters))
    assert Markov(seed, 9, 8).run(search_for(parameters, rows=[6, 1, 7, 3])) == first


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_tokens", [0, 3, 9])
def test_what_a_step_tells_leads_where_all_log_probabilities_do(seed: int, min_tokens: int) -> None:
    """Constraints look through whole rows; without any, the best that a step tells are enough."""
    parameters = DecodingParameters(max_tokens=12, min_tokens=min_tokens, beam_size=4, num_hypotheses=4)
    told = Markov(seed, 40, 4).run(search_for(parameters))
    looking = BeamSearch(parameters, END, list(range(4)), Constraints(parameters, END, ()))
    looked_through = Markov(seed, 40, 4).run(looking)
    assert [answer.token_ids for answer in told] == [answer.token_ids for answer in looked_through]
    assert [a.score for a in told] == pytest.approx([a.score for a in looked_through], abs=1e-6)
    assert min(len(answer.token_ids) for answer in told) >= min_tokens


def test_a_forced_prefix_begins_every_answer_and_counts() -> None:
    model = Markov(1, 9, 3)
    parameters = DecodingParameters(max_tokens=8, beam_size=3, num_hypotheses=3, prefix=(7, 2, 8))
    answers = model.run(search_for(parameters))
    for answer in answers:
        assert answer.token_ids[:3] == (7, 2, 8)
        ended = (END,) if answer.finish_reason is FinishReason.END_OF_SEQUENCE else ()
        assert answer.log_probability == pytest.approx(model.log_probability((*answer.token_ids, *ended)))


def test_patience_waits_for_more_finished_hypotheses() -> None:
    found = {
        patience: Markov(3, 6, 2).run(
            search_for(DecodingParameters(max_tokens=30, beam_size=2, patience=patience))
        )
        for patience in (1.0, 3.0)
    }
    num_finished = {patience: sum(not a.is_cut_off for a in answers) for patience, answers in found.items()}
    assert num_finished == {1.0: 2, 3.0: 6}
    assert found[3.0][0].score >= found[1.0][0].score


def test_a_row_that_moves_takes_its_beam_along() -> None:
    search = search_for(DecodingParameters(max_tokens=5, beam_size=2), rows=[4, 5])
    search.move(5, 0)
    search.move(4, 2)
    assert search.rows == [2, 0]
    assert search.beams[0].row == 2


class StopAfter:
    """Ends a hypothesis that has read token 5 after token 4."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last

    def accept(self, token_id: int) -> bool:
        stops = (self.last, token_id) == (4, 5)
        self.last = token_id
        return stops

    def fork(self) -> "StopAfter":
        return StopAfter(self.last)


def test_a_stop_condition_sees_each_hypothesis_by_itself() -> None:
    class Likes(Markov):
        """4 and 5 after each other are what it says; two beams part at once."""

        def after(self, history: tuple[int, ...]) -> NDArray[np.float32]:
            row = np.full(self.size, -8.0, np.float32)
            row[[4, 6]] = (-0.1, -0.2) if not history else (-7.0, -7.0)
            row[5] = -0.1 if history else -8.0
            return row

    parameters = DecodingParameters(max_tokens=4, beam_size=2, num_hypotheses=2)
    search = BeamSearch(parameters, END, [0, 1], None, StopAfter())
    answers = Likes(0, 8, 2).run(search)
    assert (answers[0].token_ids, answers[0].finish_reason) == ((4, 5), FinishReason.STOP_STRING)
    assert all((4, 5) not in itertools.pairwise(answer.token_ids[:-1]) for answer in answers)


def hypothesis(score: float, reason: FinishReason = FinishReason.END_OF_SEQUENCE) -> Hypothesis:
    return Hypothesis((5, 6), reason, -1.0, 3, score)


def test_coverage_is_the_formula_of_the_paper() -> None:
    attention = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]], np.float32)
    assert coverage_penalty(attention) == pytest.approx(math.log(1.0) + math.log(0.5) + math.log(0.2))


def test_coverage_ranks_finished_hypotheses_and_leaves_cut_off_ones_behind() -> None:
    looks_at_one = np.array([[1.0, 1e-6]] * 3, np.float32)
    looks_at_both = np.array([[0.5, 0.5]] * 3, np.float32)
    parameters = DecodingParameters(max_tokens=5, beam_size=2, coverage_penalty=0.2, align=True)
    best, second, last = ranked(
        [hypothesis(-1.0), hypothesis(-1.2), hypothesis(-0.1, FinishReason.LENGTH)],
        [looks_at_one, looks_at_both, looks_at_both],
        parameters,
    )
    assert best.score == pytest.approx(-1.2)
    assert best.alignment == (0, 0)
    assert second.score < -3
    assert last.is_cut_off
