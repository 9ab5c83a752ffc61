"""Dropout (Srivastava et al. 2014) at the speed that training on a CPU needs.

PyTorch's CPU kernel draws a 32-bit number an element from a serial generator: at the recipes' sizes that takes as
long as half of all matrix products. Here one 64-bit draw decides eight elements, which is 8 times faster, at the
price of probabilities in steps of 1/256. Both draw from PyTorch's own generator, so that one seed, and one saved
state of it, stands for everything random in a training step. A GPU has its own fused kernel.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Dropout", "dropout"]


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zero each element with `probability` (on a CPU to the nearest 1/256) and scale up the others.

    `x` has any shape; the expectation of the result is `x`.
    """
    if probability == 0.0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, probability)
    num_dropped = min(255, max(1, round(256 * probability)))  # of 256 values of a byte
    words = torch.empty(math.ceil(x.numel() / 8), dtype=torch.int64).random_(-(2**63), None)
    bytes_ = words.view(torch.int8)[: x.numel()].view(x.shape)
    # Compared in x's own type: conversion and comparison in place are vectorised there, a boolean result is not.
    kept = bytes_.to(x.dtype).ge_(num_dropped - 128).mul_(256 / (256 - num_dropped))
    return x * kept


class Dropout(nn.Module):
    """`dropout` while training, nothing otherwise."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """X of any shape -> the same shape."""
        return dropout(x, self.probability) if self.training else x
