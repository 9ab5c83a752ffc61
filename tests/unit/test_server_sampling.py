"""Sampling against distributions computed by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.sampling import new_generator, sample

GRID = (np.arange(4000) + 0.5) / 4000


def distribution(logits: np.ndarray, **options: float) -> np.ndarray:
    """Share of an even grid of uniforms that lands on each token: the distribution, to 1/4000 or so."""
    parameters = DecodingParameters(max_tokens=1, **{"temperature": 1.0, **options})  # type: ignore[arg-type]
    log_probabilities = torch.from_numpy(logits).log_softmax(-1).numpy()
    drawn = sample(np.repeat(log_probabilities[None], len(GRID), axis=0), parameters, GRID)
    return np.bincount(drawn, minlength=logits.size) / GRID.size


LOGITS = np.array([2.0, -1.0, 0.5, 1.0, -3.0, 1.0], np.float32)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_is_the_softmax_of_scaled_logits(temperature: float) -> None:
    expected = torch.softmax(torch.from_numpy(LOGITS) / temperature, -1).numpy()
    np.testing.assert_allclose(distribution(LOGITS, temperature=temperature), expected, atol=1e-3)


def test_top_k_keeps_the_k_most_probable() -> None:
    expected = torch.softmax(torch.tensor([2.0, -np.inf, -np.inf, 1.0, -np.inf, 1.0]), -1).numpy()
    np.testing.assert_allclose(distribution(LOGITS, top_k=3), expected, atol=1e-3)


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    # Probabilities 0.5, 0.3, 0.2: 0.8 is reached by two tokens, a little more needs the third.
    logits = np.log(np.array([0.3, 0.5, 0.2], np.float32))
    np.testing.assert_allclose(distribution(logits, top_p=0.79), [0.375, 0.625, 0.0], atol=1e-3)
    np.testing.assert_allclose(distribution(logits, top_p=0.81), [0.3, 0.5, 0.2], atol=1e-3)
    np.testing.assert_allclose(distribution(logits, top_p=1e-6), [0.0, 1.0, 0.0], atol=1e-3)


def test_forbidden_tokens_are_never_drawn() -> None:
    row = np.array([-np.inf, -0.1, -np.inf, -5.0], np.float32)
    parameters = DecodingParameters(max_tokens=1, temperature=5.0)
    assert {*sample(np.repeat(row[None], len(GRID), axis=0), parameters, GRID).tolist()} == {1, 3}


def test_the_same_seed_gives_the_same_stream_and_another_does_not() -> None:
    first, again, other = (
        new_generator(DecodingParameters(max_tokens=1, temperature=1.0, seed=seed)).random(8).tolist()
        for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=50),
    st.floats(0.05, 10),
    st.integers(0, 60),
    st.floats(0.01, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_always_one_of_the_top_k(
    logits: list[float], temperature: float, top_k: int, top_p: float, uniform: float
) -> None:
    row = torch.tensor(logits).log_softmax(-1).numpy()
    [token] = sample(row[None], DecodingParameters(1, 0, temperature, top_k, top_p), np.array([uniform]))
    kept = np.sort(row)[::-1][: top_k or None]
    assert row[token] >= kept[-1]


@given(
    st.lists(
        st.lists(st.sampled_from([-np.inf, -7.5, -3.25, -3.0, -0.5, 0.0]), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 7),
    st.sampled_from([0.2, 0.9, 1.0]),
    st.integers(0, 2**32),
)
def test_rows_drawn_together_are_drawn_as_alone(
    values: list[list[float]], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    rows = np.array(values, np.float32)
    rows[:, 3] = -1.0  # something is possible
    uniforms = np.random.default_rng(seed).random(len(rows))
    parameters = DecodingParameters(1, 0, temperature, top_k, top_p)
    alone = [int(sample(row[None], parameters, uniforms[[place]])[0]) for place, row in enumerate(rows)]
    assert sample(rows, parameters, uniforms).tolist() == alone


@given(
    st.lists(st.sampled_from([-np.inf, -3.25, -3.0, -0.0, 0.0, 1e-9]), min_size=1, max_size=9),
    st.integers(1, 9),
    st.floats(0, 1, exclude_max=True),
)
def test_equal_ones_are_taken_in_the_order_of_their_tokens(
    values: list[float], top_k: int, uniform: float
) -> None:
    row = np.array([*values, -1.0], np.float32)
    kept = np.argsort(-row, kind="stable")[:top_k]
    parameters = DecodingParameters(1, 0, 1.0, top_k, 0.999999)
    assert sample(row[None], parameters, np.array([uniform]))[0] in {*kept.tolist(), int(row.argmax())}
