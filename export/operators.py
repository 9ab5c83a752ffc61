"""ONNX Runtime's contributed attention operators (onnxruntime/docs/ContribOperators.md), as functions of tensors.

They compute nothing here: the exporter writes them as nodes.
"""

from typing import cast

import torch
from torch import Tensor, nn

from model.attention import SelfAttention

__all__ = ["group_query", "multi_head"]


def group_query(
    attention: nn.Module,
    query: Tensor,
    new: tuple[Tensor, Tensor] | None,
    past: tuple[Tensor, Tensor],
    positions: Tensor,
) -> tuple[Tensor, ...]:
    """`GroupQueryAttention`: each of T queries a row sees the positions up to its own.

    Args:
        attention: numbers of heads and widths.
        query: (B, T, query width), or with key and value behind it, packed, where `new` is None. T above 1 beside a
            past is for B = 1 only.
        new: key and value (B, T, kv width).
        past: keys and values (B, kv heads, capacity, head size); bound to the outputs' memory, appended to in place.
        positions: (B) int32, where the last of a row's new tokens stands.

    Returns:
        Heads (B, T, query width), keys and values as `past`.
    """
    num_heads, num_kv_heads = cast("int", attention.num_heads), cast("int", attention.num_kv_heads)
    # More than the new tokens, or the operator takes them for a whole prompt and forgets the past.
    capacity = torch.tensor([past[0].shape[2]], dtype=torch.int32)
    heads, key, value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (query, *(new or (None, None)), *past, positions, capacity),
        attrs={"num_heads": num_heads, "kv_num_heads": num_kv_heads},
        dtypes=(query.dtype,) * 3,
        shapes=((*query.shape[:2], cast("int", attention.query_width)), past[0].shape, past[1].shape),
        version=1,
    )
    return heads, key, value


def multi_head(
    attention: SelfAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    *,
    causal: bool,
) -> Tensor:
    """`MultiHeadAttention` over whole sequences: query (B, T, H * head), key and value (B, T, Hkv * head).

    `allowed` (B, T) int32 is 1 where a key may be seen; None: all may. Returns heads (B, T, H * head).
    """
    groups = attention.num_heads // attention.num_kv_heads
    if groups > 1:  # MultiHeadAttention knows no groups
        key, value = (
            part.unflatten(-1, (attention.num_kv_heads, -1)).repeat_interleave(groups, dim=2).flatten(2)
            for part in (key, value)
        )
    heads: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (query, key, value, None, allowed) if allowed is not None else (query, key, value),
        attrs={"num_heads": attention.num_heads, "unidirectional": int(causal)},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )
    return heads
