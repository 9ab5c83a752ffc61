"""The fused loss against PyTorch's own operators, values and gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dragoman.model import cross_entropy
from dragoman.model.cross_entropy import linear_cross_entropy, linear_cross_entropy_twice


@pytest.fixture(params=[1 << 20, 700, 1], ids=["one chunk", "several", "a row at a time"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS", request.param)


def inputs(num_rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(num_rows, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, dtype=dtype, requires_grad=True)
    return states, weight, torch.randint(0, 50, (num_rows,))


def close(ours: Tensor, theirs: Tensor, states: Tensor, weight: Tensor, tolerance: float = 1e-4) -> None:
    """Values, and gradients of a multiple: the loss is scaled before it goes back."""
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-4)
    expected = torch.autograd.grad(3 * theirs, (states, weight))
    for one, other in zip(torch.autograd.grad(3 * ours, (states, weight)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_pytorchs_cross_entropy(smoothing: float) -> None:
    states, weight, labels = inputs(37)
    expected = functional.cross_entropy(states @ weight.T, labels, reduction="sum", label_smoothing=smoothing)
    close(linear_cross_entropy(states, weight, labels, smoothing), expected, states, weight)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_r_drop_is_the_papers_formula(smoothing: float) -> None:
    """Liang et al. 2021, equation 4, halved."""
    states, weight, labels = inputs(2 * 19)
    labels = labels[:19]
    logits = states @ weight.T
    both = torch.cat([labels, labels])
    entropy = functional.cross_entropy(logits, both, reduction="sum", label_smoothing=smoothing)
    first, second = logits.log_softmax(-1).chunk(2)
    forward = functional.kl_div(second, first, reduction="sum", log_target=True)
    backward = functional.kl_div(first, second, reduction="sum", log_target=True)
    expected = (entropy + 5.0 * 0.5 * (forward + backward)) / 2
    close(linear_cross_entropy_twice(states, weight, labels, smoothing, 5.0), expected, states, weight)


def test_under_autocast_it_is_near() -> None:
    states, weight, labels = inputs(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(states, weight, labels, 0.1)
    expected = functional.cross_entropy(states @ weight.T, labels, reduction="sum", label_smoothing=0.1)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-2)
    gradient = torch.autograd.grad(ours, weight)[0]
    assert gradient.dtype == torch.float32
    reference = torch.autograd.grad(expected, weight)[0]
    assert float((gradient - reference).norm() / reference.norm()) < 0.02


def test_no_rows_lose_nothing() -> None:
    states, weight, labels = inputs(0)
    loss = linear_cross_entropy(states, weight, labels, 0.1)
    assert loss.item() == 0.0
    gradients = torch.autograd.grad(loss, (states, weight))
    assert all(not gradient.any() for gradient in gradients)


def test_logits_far_apart_do_not_overflow() -> None:
    states = torch.tensor([[1e4, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    assert linear_cross_entropy(states, weight, torch.tensor([0])).item() == 0.0
    assert linear_cross_entropy(states, weight, torch.tensor([1])).item() == pytest.approx(2e4)
