"""Multi-head attention (Vaswani et al. 2017, section 3.2); groups of heads may share keys and values.

Two functions compute the same thing: `explicit_attention` in the paper's three steps, to read, to look at the
weights and to train on a CPU, and `fused_attention`, which hands them to one kernel. Where the keys come from
differs between training, prefill and step-by-step decoding; `attend` of the two modules is therefore the only
place that knows, and the projections around it are shared by all.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from dragoman.model.dropout import dropout

__all__ = [
    "CrossAttention",
    "SelfAttention",
    "explicit_attention",
    "fused_attention",
    "merge_heads",
    "observe_weights",
    "split_heads",
]


# Up to this many keys, training on a CPU writes the weights out: PyTorch's fused kernel has a backward pass that is
# 8 times slower in bf16 at 15 tokens and twice as slow at 256, and knows no dropout.
_MAX_EXPLICIT_KEYS = 512


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None = None,
    *,
    causal: bool = False,
    dropout_probability: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention (equation 1) in its three steps.

    Args:
        query: (B, H, T, head).
        key: (B, Hkv, S, head); Hkv divides H, each key head serves H / Hkv query heads (Ainslie et al. 2023).
        value: (B, Hkv, S, head).
        allowed: boolean, broadcastable to (B, H, T, S); True where a query may look at a key.
        causal: position t sees positions up to t; give it or `allowed`, not both.
        dropout_probability: of the weights.

    Returns:
        The weighted sum (B, H, T, head) and the weights (B, H, T, S), before dropout.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if allowed is not None:  # added, not filled: that is vectorised
        scores = scores + torch.zeros_like(allowed, dtype=scores.dtype).masked_fill_(~allowed, -math.inf)
    weights = scores.softmax(dim=-1)
    return dropout(weights, dropout_probability) @ value, weights


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Equal to the first result of `explicit_attention`, in one kernel that never stores the weights.

    `causal` lets position t see positions up to t; give it or `allowed`, not both.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # the CPU kernel falls back to a slow path for enable_gqa
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, dropout_p=dropout, is_causal=causal
    )


def _writes_weights_out(query: Tensor, key: Tensor, dropout_probability: float) -> bool:
    gains = query.dtype == torch.bfloat16 or dropout_probability > 0
    trains_on_cpu = query.device.type == "cpu" and query.requires_grad
    return trains_on_cpu and gains and key.shape[-2] <= _MAX_EXPLICIT_KEYS


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H * head) -> (B, H, T, head)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, head) -> (B, T, H * head): the concatenation of the heads."""
    return x.transpose(1, 2).flatten(2)


class _MultiHeadAttention(nn.Module):
    def __init__(self, width: int, num_heads: int, num_kv_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_size = width // num_heads
        self.query_width, self.kv_width = num_heads * self.head_size, num_kv_heads * self.head_size
        self.dropout = dropout
        self.observer: Callable[[Tensor], None] | None = None  # is shown the weights (B, H, T, S)
        self.output = nn.Linear(self.query_width, width)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, *, causal: bool = False
    ) -> Tensor:
        """Attention of all heads over head-merged projections, concatenated: (B, T, H * head)."""
        probability = self.dropout if self.training else 0.0
        query = split_heads(query, self.num_heads)
        key, value = split_heads(key, self.num_kv_heads), split_heads(value, self.num_kv_heads)
        if self.observer is not None or _writes_weights_out(query, key, probability):
            heads, weights = explicit_attention(
                query, key, value, allowed, causal=causal, dropout_probability=probability
            )
            if self.observer is not None:
                self.observer(weights)
        else:
            heads = fused_attention(query, key, value, allowed, causal=causal, dropout=probability)
        return merge_heads(heads)


class SelfAttention(_MultiHeadAttention):
    """Queries, keys and values from one sequence. Each head owns its rows of the packed projection."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, dropout: float) -> None:
        super().__init__(width, num_heads, num_kv_heads, dropout)
        self.query_key_value = nn.Linear(width, self.query_width + 2 * self.kv_width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, width) -> query (B, T, H * head), key and value (B, T, Hkv * head)."""
        query, key, value = self.query_key_value(x).split(
            [self.query_width, self.kv_width, self.kv_width], dim=-1
        )
        return query, key, value

    def forward(self, x: Tensor, allowed: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Attend within `x` (B, T, width)."""
        query, key, value = self.project(x)
        return self.output(self.attend(query, key, value, allowed, causal=causal))


class CrossAttention(_MultiHeadAttention):
    """Queries from the target, keys and values from the encoder's output."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, dropout: float) -> None:
        super().__init__(width, num_heads, num_kv_heads, dropout)
        self.query = nn.Linear(width, self.query_width)
        self.key_value = nn.Linear(width, 2 * self.kv_width)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, width) -> key and value (B, S, Hkv * head), computed once for a source."""
        key, value = self.key_value(memory).chunk(2, dim=-1)
        return key, value

    def forward(self, x: Tensor, memory: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend from `x` (B, T, width) to `memory` (B, S, width)."""
        key, value = self.project_memory(memory)
        return self.output(self.attend(self.query(x), key, value, allowed))


@contextlib.contextmanager
def observe_weights(
    attention: SelfAttention | CrossAttention, observer: Callable[[Tensor], None]
) -> Iterator[None]:
    """While the block runs, show `observer` the weights (B, H, T, S) each time `attention` attends."""
    attention.observer = observer
    try:
        yield
    finally:
        attention.observer = None
