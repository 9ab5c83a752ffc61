"""Output projection and cross-entropy in one piece, with label smoothing and R-Drop, gradients included.

The logits of all tokens over the whole vocabulary are by far the largest tensor of a training step. They are made
here a few rows at a time, so that they stay in the processor's cache, and are turned into their own gradient at
once: nothing of the size (tokens, vocabulary) is ever stored, and the softmax is computed once, not once forward
and once backward.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["linear_cross_entropy", "linear_cross_entropy_twice"]

_CHUNK_ELEMENTS = 1 << 20  # logits at a time: 4 MiB in fp32


def linear_cross_entropy(
    states: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Summed cross-entropy of softmax(states @ weight.T) against `labels`.

    Args:
        states: (N, width).
        weight: (vocabulary, width).
        labels: (N), each a row of `weight`.
        label_smoothing: share of the target spread evenly over the vocabulary (Szegedy et al. 2016).
    """
    total: Tensor = _LinearCrossEntropy.apply(states, weight, labels, label_smoothing, 0.0, 1)
    return total


def linear_cross_entropy_twice(
    states: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float, r_drop: float
) -> Tensor:
    """As `linear_cross_entropy` for two passes with different dropout, drawn towards each other.

    R-Drop (Liang et al. 2021, equation 4, halved so that the cross-entropy is the mean of the two):
    (CE_1 + CE_2) / 2 + r_drop / 4 * (KL(1 || 2) + KL(2 || 1)).

    Args:
        states: (2 N, width): all rows of the first pass, then all of the second.
        weight: (vocabulary, width).
        labels: (N).
        label_smoothing: as in `linear_cross_entropy`.
        r_drop: the paper's alpha.
    """
    total: Tensor = _LinearCrossEntropy.apply(states, weight, labels, label_smoothing, r_drop, 2)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes what it is given by position
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        labels: Tensor,
        label_smoothing: float,
        r_drop: float,
        num_passes: int,
    ) -> Tensor:
        device = states.device.type
        autocasts = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocasts else states.dtype
        needs_gradient = any(ctx.needs_input_grad[:2])
        with torch.autocast(device, enabled=False):
            hidden, matrix = states.to(dtype), weight.to(dtype)
            total = torch.zeros((), device=states.device)
            states_gradient = torch.empty_like(hidden) if needs_gradient else None
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_gradient else None
            for rows in _chunks(len(labels), num_passes * len(weight)):
                # (passes, chunk, width)
                part = hidden.view(num_passes, len(labels), -1)[:, rows]
                logits = (part @ matrix.T).float()
                losses, gradient = _cross_entropy(logits, labels[rows], label_smoothing, needs_gradient)
                total += losses / num_passes
                if num_passes == 2:
                    gradient /= 2
                    total += _draw_together(logits, gradient, r_drop / 4, needs_gradient) * (r_drop / 4)
                if states_gradient is not None and weight_gradient is not None:
                    low = gradient.to(dtype)
                    states_gradient.view(num_passes, len(labels), -1)[:, rows] = low @ matrix
                    weight_gradient += (low.flatten(0, 1).T @ part.flatten(0, 1)).float()
        ctx.save_for_backward(states_gradient, weight_gradient)
        ctx.types = states.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, total_gradient: Tensor) -> tuple[Tensor | None, ...]:
        states_gradient, weight_gradient = ctx.saved_tensors
        states_type, weight_type = ctx.types
        return (
            states_gradient.to(states_type) * total_gradient,
            weight_gradient.to(weight_type) * total_gradient,
            None,
            None,
            None,
            None,
        )


def _chunks(num_rows: int, row_elements: int) -> Iterator[slice]:
    size = max(1, _CHUNK_ELEMENTS // row_elements)
    yield from (slice(start, start + size) for start in range(0, num_rows, size))


def _cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float, needs_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Logits (passes, n, vocabulary) -> their summed loss and its gradient, of the same shape.

    `logits` become log-probabilities in place.
    """
    vocabulary_size = logits.shape[-1]
    index = labels.expand(logits.shape[:-1])[..., None]  # (passes, n, 1)
    spread = label_smoothing / vocabulary_size
    probabilities = logits.softmax(dim=-1)
    # The normaliser again from the largest of each row: PyTorch's own logsumexp takes twice as long as its softmax.
    logits -= logits.amax(dim=-1, keepdim=True) - probabilities.amax(dim=-1, keepdim=True).log()
    loss = -(1.0 - label_smoothing) * logits.gather(-1, index).sum()
    if spread:
        loss -= spread * logits.sum()
    if not needs_gradient:
        return loss, probabilities
    gradient = probabilities
    if spread:
        gradient -= spread
    gradient.scatter_add_(-1, index, torch.full_like(index, label_smoothing - 1.0, dtype=gradient.dtype))
    return loss, gradient


def _draw_together(
    log_probabilities: Tensor, gradient: Tensor, weight: float, needs_gradient: bool
) -> Tensor:
    """The symmetric divergence of the two passes of (2, n, vocabulary); adds `weight` times its gradient."""
    first, second = log_probabilities
    gap = first - second  # (n, vocabulary)
    probability = first.exp(), second.exp()
    forward = (probability[0] * gap).sum(dim=-1, keepdim=True)  # KL(1 || 2)
    backward = -(probability[1] * gap).sum(dim=-1, keepdim=True)  # KL(2 || 1)
    if needs_gradient:
        difference = probability[0] - probability[1]
        gradient[0].add_(probability[0].mul_(gap - forward).add_(difference), alpha=weight)
        gradient[1].add_(probability[1].mul_(-gap - backward).sub_(difference), alpha=weight)
    return (forward + backward).sum()
