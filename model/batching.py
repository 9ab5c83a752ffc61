"""Batches by token budget with length bucketing: rows of like length share a batch, so little is padding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.tokenizer import PADDING_ID

__all__ = ["pad_right"]


def pad_right(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token ids (B, longest), the shorter rows filled with the padding token."""
    longest = max(map(len, sequences))
    return torch.tensor([[*tokens, *[PADDING_ID] * (longest - len(tokens))] for tokens in sequences])
