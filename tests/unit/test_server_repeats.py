"""What an output has said already: the same as by looking at all of it, without looking at all of it."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dragoman.server.decoding.beam import BeamSearch
from dragoman.server.decoding.beam_step import advance_all
from dragoman.server.decoding.candidates import Predictions, best_of_rows
from dragoman.server.decoding.constraints import Constraints
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.repeats import Repeats

END, SIZE = 1, 9
Tokens = st.lists(st.integers(2, SIZE - 1), max_size=30)


def completing(history: Sequence[int], size: int) -> set[int]:
    """By the definition: a token that would end a run of `size` tokens that is there already."""
    runs = {tuple(history[start : start + size]) for start in range(len(history) - size + 1)}
    return {token_id for token_id in range(SIZE) if (*history, token_id)[-size:] in runs}


@given(Tokens, Tokens, st.integers(1, 4))
def test_seen_and_completing_are_those_of_the_whole_text(
    context: list[int], output: list[int], size: int
) -> None:
    repeats = Repeats.of(context, size)
    for place in range(len(output) + 1):
        history = [*context, *output[:place]]
        assert sorted(repeats.seen.tolist()) == sorted(set(history))
        assert set(repeats.completing.tolist()) == completing(history, size)
        if place < len(output):
            repeats.append(output[place])


@given(Tokens, Tokens, Tokens, Tokens, st.integers(1, 4))
def test_forks_and_texts_with_one_context_go_on_by_themselves(
    context: list[int], first: list[int], second: list[int], third: list[int], size: int
) -> None:
    parent, other = Repeats.of(context, size), Repeats.of(context, size)
    for token_id in first:
        parent.append(token_id)
    child = parent.fork()
    for repeats, tokens in ((child, second), (parent, third), (other, second)):
        for token_id in tokens:
            repeats.append(token_id)
    for repeats, text in ((parent, first + third), (child, first + second), (other, second)):
        assert set(repeats.seen.tolist()) == {*context, *text}
        assert set(repeats.completing.tolist()) == completing([*context, *text], size)


class CountedTokens(list[int]):
    """A list that counts the tokens that are read from it."""

    num_read = 0

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        found = super().__getitem__(place)
        self.num_read += len(found) if isinstance(found, list) else 1
        return found

    def __iter__(self):  # type: ignore[no-untyped-def]
        raise AssertionError("the whole output is read")


def test_a_step_reads_what_is_new_of_an_output() -> None:
    parameters = DecodingParameters(max_tokens=999, no_repeat_ngram_size=3, repetition_penalty=1.1)
    constraints = Constraints(parameters, END, context=[2, 3, 4] * 50)
    row, output = np.zeros(SIZE, np.float32), CountedTokens()
    for step in range(500):
        output.append(2 + step % 7)
        constraints.adjust(row, output)
    assert output.num_read == 500


def test_each_beam_has_what_it_said_itself() -> None:
    """Beams fork and fall away for forty steps: each row is adjusted as its own tokens alone would have it."""
    parameters = DecodingParameters(
        max_tokens=40, beam_size=3, no_repeat_ngram_size=2, repetition_penalty=1.3
    )
    context = [2, 3, 2, 4]
    rng = np.random.default_rng(1)
    search = BeamSearch(parameters, END, [0, 1, 2], Constraints(parameters, END, context))
    num_forks = 0
    for _ in range(39):
        scores = -rng.exponential(2.0, (3, SIZE)).astype(np.float32)
        scores[:, [0, END]] = -50.0
        adjusted = scores[[beam.row for beam in search.beams]]
        search.adjust(adjusted)
        for row, beam in zip(adjusted, search.beams, strict=True):
            fresh = Constraints(parameters, END, context)
            expected = fresh.adjusted(scores[beam.row], beam.token_ids)
            assert np.array_equal(row, expected)
        [(forks, answers)] = advance_all([search], Predictions(scores, *best_of_rows(scores, 6)))
        num_forks += len(forks)
        assert answers is None
    assert num_forks > 20
