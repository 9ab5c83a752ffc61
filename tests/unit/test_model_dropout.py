"""Dropout: the share it drops, the expectation it keeps, one seed for all of it."""

import pytest
import torch

from dragoman.model.dropout import Dropout, dropout


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_dropped_and_the_mean(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 513, dtype=dtype)
    y = dropout(x, probability)
    assert y.dtype == dtype
    share = float((y == 0).float().mean())
    assert share == pytest.approx(round(256 * probability) / 256, abs=0.003)
    assert float(y.float().mean()) == pytest.approx(1.0, abs=0.02)
    assert len(set(y.flatten().tolist())) == 2, "the others are all scaled alike"


def test_elements_fall_independently() -> None:
    """Eight share a random word: they must not share their fate."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(4000, 8), 0.5) > 0).float()
    correlations = torch.corrcoef(kept.T) - torch.eye(8)
    assert float(correlations.abs().max()) < 0.08


def test_gradients_pass_where_values_do() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 33, requires_grad=True)
    y = dropout(x, 0.3)
    torch.autograd.backward(y.sum())
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y / x).detach())


def test_the_seed_decides() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(torch.ones(100, 10), 0.2))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_a_tiny_probability_is_not_rounded_away() -> None:
    torch.manual_seed(0)
    assert 0 < int((dropout(torch.ones(100_000), 1e-4) == 0).sum()) < 1_000


def test_nothing_is_dropped_in_evaluation() -> None:
    module = Dropout(0.5)
    x = torch.randn(5, 7)
    assert torch.equal(module.eval()(x), x)
    assert not torch.equal(module.train()(x), x)
    assert torch.equal(dropout(x, 0.0), x)
