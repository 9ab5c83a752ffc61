"""Sampling against distributions computed by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.decoding.parameters import DecodingParameters
from server.decoding.sampling import new_generator, sample

GRID = (np.arange(4000) + 0.5) / 4000


def distribution(logits: np.ndarray, **options: float) -> np.ndarray:
    """Share of an even grid of uniforms that lands on each token: the distribution, to 1/4000 or so."""
    parameters = DecodingParameters(max_tokens=1, **{"temperature": 1.0, **options})  # type: ignore[arg-type]
    log_probabilities = torch.from_numpy(logits).log_softmax(-1).numpy()
    drawn = [sample(log_probabilities, parameters, uniform) for uniform in GRID]
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
    assert {sample(row, parameters, uniform) for uniform in GRID} == {1, 3}


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
    token = sample(row, DecodingParameters(1, 0, temperature, top_k, top_p), uniform)
    kept = np.sort(row)[::-1][: top_k or None]
    assert row[token] >= kept[-1]
