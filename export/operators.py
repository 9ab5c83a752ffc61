"""Operators of the graphs as functions of tensors. They compute nothing here: the exporter writes them as nodes.

Those of domain "dragoman" are functions of other operators (`dragoman.export.functions`); `group_query` and
`multi_head` are ONNX Runtime's own contributed ones (onnxruntime/docs/ContribOperators.md).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dragoman.model.attention import CrossAttention, SelfAttention

__all__ = [
    "best_tokens",
    "cross_attention",
    "encoder_attention",
    "group_query",
    "int8_linear",
    "multi_head",
    "self_attention",
    "source_caches",
]


def self_attention(
    attention: SelfAttention, packed: Tensor, past: tuple[Tensor, Tensor], lengths: Tensor
) -> tuple[Tensor, ...]:
    """`SelfAttention`: each row's token is appended to its cache and sees all that is there.

    Args:
        attention: numbers of heads and widths.
        packed: query, key and value of the token, (B, query + 2 kv width).
        past: keys and values (B, kv heads, capacity, head size); bound to the outputs' memory, appended to in place.
        lengths: (B) int32, tokens in each row's cache.

    Returns:
        Heads (B, query width), keys and values as `past`.
    """
    return _cached("SelfAttention", attention, (packed, *past, lengths), past)


def cross_attention(
    attention: CrossAttention,
    query: Tensor,
    last: tuple[Tensor, Tensor],
    past: tuple[Tensor, Tensor],
    lengths: Tensor,
) -> tuple[Tensor, ...]:
    """`CrossAttention`: each row's query (B, query width) sees the `lengths` (B) tokens of its source.

    `last` is key and value (B, 1, kv width) of the source's last token, `past` all of them, as in
    `self_attention`. Returns the same.
    """
    return _cached("CrossAttention", attention, (query, *last, *past, lengths), past)


def _cached(
    name: str, attention: nn.Module, inputs: tuple[Tensor, ...], past: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    heads, key, value = torch.onnx.ops.symbolic_multi_out(
        f"dragoman::{name}",
        inputs,
        attrs=_heads(attention),
        dtypes=(inputs[0].dtype,) * 3,
        shapes=((inputs[0].shape[0], cast("int", attention.query_width)), past[0].shape, past[1].shape),
        version=1,
    )
    return heads, key, value


def encoder_attention(attention: SelfAttention, packed: Tensor, lengths: Tensor) -> Tensor:
    """`EncoderAttention`: packed (B, T, query + 2 kv width), lengths (B) int32 -> heads (B, T, query width)."""
    heads: Tensor = torch.onnx.ops.symbolic(
        "dragoman::EncoderAttention",
        (packed, lengths),
        attrs=_heads(attention),
        dtype=packed.dtype,
        shape=(*packed.shape[:2], attention.query_width),
        version=1,
    )
    return heads


def source_caches(attention: CrossAttention, packed: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    """`SourceCaches`: packed (B, T, 2 kv width), lengths (B) int32 -> a source as caches have it.

    Keys and values (B, kv heads, T, head size), and those of each last token (B, 1, kv width).
    """
    rows, num_tokens = packed.shape[:2]
    whole = (rows, attention.num_kv_heads, num_tokens, attention.head_size)
    last = (rows, 1, attention.kv_width)
    return tuple(
        torch.onnx.ops.symbolic_multi_out(
            "dragoman::SourceCaches",
            (packed, lengths),
            attrs={"kv_num_heads": attention.num_kv_heads, "head_size": attention.head_size},
            dtypes=(packed.dtype,) * 4,
            shapes=(whole, whole, last, last),
            version=1,
        )
    )


def _heads(attention: nn.Module) -> dict[str, Any]:
    names = {"num_heads": "num_heads", "kv_num_heads": "num_kv_heads", "head_size": "head_size"}
    return {name: cast("int", getattr(attention, ours)) for name, ours in names.items()}


def best_tokens(
    logits: Tensor, number: Tensor, needs_all: Tensor, num_best: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`BestTokens`: logits (B, V) fp32 -> log-probabilities (B, V), the K largest and whose they are (B, K).

    `number` (1) int64 says K when the graph runs, `num_best` what it is in the traced example. Where `needs_all` (1)
    int64 is 0, log-probabilities need not be written.
    """
    shape = logits.shape[0], num_best
    log_probabilities, best, token_ids = torch.onnx.ops.symbolic_multi_out(
        "dragoman::BestTokens",
        (logits, number, needs_all),
        dtypes=(torch.float32, torch.float32, torch.int64),
        shapes=(logits.shape, shape, shape),
        version=1,
    )
    return log_probabilities, best, token_ids


def int8_linear(x: Tensor, weights: tuple[Tensor, ...], num_columns: int) -> Tensor:
    """`Int8Linear`: x (..., K) -> (..., N); weights are its other inputs, in order."""
    y: Tensor = torch.onnx.ops.symbolic(
        "dragoman::Int8Linear",
        (x, *weights),
        dtype=torch.float32,
        shape=(*x.shape[:-1], num_columns),
        version=1,
    )
    return y


def group_query(
    attention: nn.Module,
    query: Tensor,
    past: tuple[Tensor, Tensor],
    positions: Tensor,
) -> tuple[Tensor, ...]:
    """`GroupQueryAttention`: each of T queries a row sees the positions up to its own.

    Args:
        attention: numbers of heads and widths.
        query: with key and value behind it, (B, T, query + 2 kv width). T above 1 beside a past is for B = 1 only.
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
        (query, None, None, *past, positions, capacity),
        attrs={"num_heads": num_heads, "kv_num_heads": num_kv_heads},
        dtypes=(query.dtype,) * 3,
        shapes=((*query.shape[:2], cast("int", attention.query_width)), past[0].shape, past[1].shape),
        version=1,
    )
    return heads, key, value


def multi_head(attention: SelfAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`MultiHeadAttention`, each token seeing those up to itself.

    query (B, T, H * head), key and value (B, T, Hkv * head) -> heads (B, T, H * head).
    """
    groups = attention.num_heads // attention.num_kv_heads
    if groups > 1:  # MultiHeadAttention knows no groups
        key, value = (
            part.unflatten(-1, (attention.num_kv_heads, -1)).repeat_interleave(groups, dim=2).flatten(2)
            for part in (key, value)
        )
    heads: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (query, key, value),
        attrs={"num_heads": attention.num_heads, "unidirectional": 1},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )
    return heads
