"""Muon (Jordan et al. 2024) in a precision that is chosen."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalise"]

# Coefficients, and the number of iterations, of https://kellerjordan.github.io/posts/muon/.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_SMALLEST_NORM = 1e-7


class Muon(torch.optim.Muon):
    """PyTorch's Muon, whose orthogonalisation is always computed in bf16.

    On a CPU without bf16 instructions that is thirty times slower than in fp32: six sevenths of a training step
    of `multi30k`. Steps are scaled to the size of AdamW's (Liu et al. 2025). Its state is PyTorch's.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, precision: torch.dtype
    ) -> None:
        """Train `matrices` with it.

        Args:
            matrices: parameters of two dimensions.
            lr: learning rate.
            weight_decay: decoupled, times the learning rate.
            precision: what the products of the orthogonalisation are computed in.
        """
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        momentum, rate = group["momentum"], float(group["lr"])
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"]
        average.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(average, momentum) if group["nesterov"] else average
        step = orthogonalise(update, self._precision)
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.add_(step, alpha=-rate * 0.2 * max(parameter.shape) ** 0.5)


def orthogonalise(matrix: Tensor, precision: torch.dtype) -> Tensor:
    """The nearest matrix, roughly, whose singular values are all one: five Newton-Schulz iterations.

    Args:
        matrix: (height, width).
        precision: of the products.

    Returns:
        (height, width) in `precision`; singular values lie in about [0.5, 1.5].
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    result = (matrix.T if is_tall else matrix).to(precision)
    result = result / result.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(_NUM_ITERATIONS):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.T if is_tall else result
