"""Muon against PyTorch's own, and against what orthogonal means."""

import pytest
import torch
from torch import nn

from dragoman.model.training.muon import Muon, orthogonalise


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [
        nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((24, 40), (40, 24), (16, 16))
    ]


def trained(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> dict[str, object]:
    for step in range(5):
        for number, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(10 * step + number)
            parameter.grad = torch.randn(*parameter.shape, generator=generator)
        optimizer.step()
    return optimizer.state_dict()


def test_in_bf16_it_is_pytorchs() -> None:
    """On CPUs without bf16 instructions PyTorch's is thirty times slower: multi30k took 3.2 s a step for 0.9."""
    ours, theirs = matrices(), matrices()
    state = trained(Muon(ours, 0.02, 0.1, torch.bfloat16), ours)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    expected = trained(other, theirs)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its)
    assert state.keys() == expected.keys()
    torch.testing.assert_close(state["state"], expected["state"])


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_singular_values_come_to_one(shape: tuple[int, int], precision: torch.dtype) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
    result = orthogonalise(matrix, precision)
    assert result.dtype == precision
    assert result.shape == shape
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.einsum("hk,hw,kw->k", left, result.float(), right)  # its own singular vectors stay
    assert values.min() > 0.4
    assert values.max() < 1.6


def test_nothing_is_divided_by_a_gradient_of_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(4, 6), torch.float32), torch.zeros(4, 6))


def test_a_closure_gives_the_loss_and_matrices_without_gradient_stay() -> None:
    first, second = nn.Parameter(torch.eye(3)), nn.Parameter(torch.eye(3))
    optimizer = Muon([first, second], 0.1, 0.0, torch.float32)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = first.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    loss = optimizer.step(closure)
    assert loss is not None
    assert loss.item() == pytest.approx(3.0)
    assert not torch.equal(first, torch.eye(3))
    assert torch.equal(second, torch.eye(3))
