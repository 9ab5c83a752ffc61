"""The operators of domain "dragoman": what each computes, written in ONNX's own and ONNX Runtime's contributed ones.

Every graph carries these functions beside its nodes. ONNX Runtime runs them as they stand here, on any machine; a
server that has the kernels (`kernels/`, `dragoman.server.execution.kernels`) has them run in their stead (ADR 16).

    SelfAttention     packed (B, query + 2 kv width), keys, values, lengths (B)
                      -> heads (B, query width), keys, values with the new token at its length
    CrossAttention    query (B, query width), last key, last value, keys, values, lengths (B)
                      -> heads (B, query width), keys, values as they were
    EncoderAttention  packed (B, T, query + 2 kv width), lengths (B) -> heads (B, T, query width)
    SourceCaches      packed (B, T, 2 kv width), lengths (B) -> keys, values (B, kv heads, T, head size),
                      the last of each source (B, 1, kv width)
    AddNorm           x, y (..., width), weight, bias (width) -> x + y, its layer normalisation
    BestTokens        logits (B, V), number K (1), whether all are needed (1)
                      -> log-probabilities (B, V), or anything; the K largest and their places (B, K)
    Int8Linear        x (..., depth), scale, zero point, weights (depth, columns), column scales, bias (columns)
                      -> (..., columns)
"""

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, helper

__all__ = ["DOMAIN", "add_functions"]

DOMAIN = "dragoman"
_CONTRIB = "com.microsoft"


def add_functions(model: onnx.ModelProto) -> None:
    """Give a model the functions that its nodes name."""
    nodes = {node.op_type: node for node in model.graph.node if node.domain == DOMAIN}
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(_CONTRIB, 1)]
    for op_type, node in sorted(nodes.items()):
        # A function's body may have what its node's attributes say written into it.
        given = [
            each.attribute for each in model.graph.node if (each.domain, each.op_type) == (DOMAIN, op_type)
        ]
        assert all(list(one) == list(node.attribute) for one in given), f"{op_type} with unlike attributes"
        inputs, outputs, attributes, body = _BODIES[op_type](node)
        model.functions.append(
            helper.make_function(DOMAIN, op_type, inputs, outputs, body, opsets, attributes)
        )
    known = {entry.domain for entry in model.opset_import}
    if nodes:
        missing = {DOMAIN, _CONTRIB} - known
        model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(missing))


_Body = tuple[Sequence[str], Sequence[str], Sequence[str], list[NodeProto]]
_HEADS = ("num_heads", "kv_num_heads", "head_size")


def _node(op_type: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> NodeProto:
    """Names are separated by blanks; "-" is an input left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), domain=domain, **attributes)


def _references(node: NodeProto, *names: str) -> NodeProto:
    """Let a function's node take attributes from the function's own."""
    for name in names:
        node.attribute.append(
            onnx.AttributeProto(name=name, ref_attr_name=name, type=onnx.AttributeProto.INT)
        )
    return node


def _over_cache(query: str, new: str, last: str) -> list[NodeProto]:
    """GroupQueryAttention of one query a row; `new` are key and value that it writes to place `last` of the caches."""
    return [
        _node("Constant", "", "axis", value_ints=[1]),
        _node("Unsqueeze", f"{query} axis", "tokens"),
        # More than the new token, or the operator takes it for a whole prompt and forgets the past.
        _node("Shape", "past_key", "capacity", start=2, end=3),
        _node("Cast", "capacity", "total", to=TensorProto.INT32),
        _references(
            _node(
                "GroupQueryAttention",
                f"tokens {new} past_key past_value {last} total",
                "seen key value",
                _CONTRIB,
            ),
            "num_heads",
            "kv_num_heads",
        ),
        _node("Squeeze", "seen axis", "heads"),
    ]


def _self_attention(_: NodeProto) -> _Body:
    body = _over_cache("packed", "- -", "lengths")
    return ("packed", "past_key", "past_value", "lengths"), ("heads", "key", "value"), _HEADS, body


def _cross_attention(_: NodeProto) -> _Body:
    """The source's last key and value are handed in as the new ones: the operator rewrites the bytes that are there."""
    body = [
        _node("Constant", "", "one", value=helper.make_tensor("one", TensorProto.INT32, [1], [1])),
        _node("Sub", "lengths one", "last"),
        *_over_cache("query", "last_key last_value", "last"),
    ]
    inputs = ("query", "last_key", "last_value", "past_key", "past_value", "lengths")
    return inputs, ("heads", "key", "value"), _HEADS, body


def _encoder_attention(node: NodeProto) -> _Body:
    num_heads, num_kv_heads, head_size = (_integer(node, name) for name in _HEADS)
    kv_width = num_kv_heads * head_size
    body = [
        _node("Constant", "", "widths", value_ints=[num_heads * head_size, kv_width, kv_width]),
        _node("Split", "packed widths", "query key value", axis=-1),
        _node("Shape", "packed", "num_tokens", start=1, end=2),
        _node("Constant", "", "zero", value_int=0),
        _node("Constant", "", "one", value_int=1),
        _node("Squeeze", "num_tokens", "end"),
        _node("Range", "zero end one", "positions"),
        _node("Constant", "", "axis", value_ints=[1]),
        _node("Unsqueeze", "lengths axis", "column"),
        _node("Cast", "column", "limits", to=TensorProto.INT64),
        _node("Less", "positions limits", "seen"),
        _node("Cast", "seen", "mask", to=TensorProto.INT32),
        *_repeated("key", num_heads, num_kv_heads, head_size),
        *_repeated("value", num_heads, num_kv_heads, head_size),
        _references(_node("MultiHeadAttention", "query keys values - mask", "heads", _CONTRIB), "num_heads"),
    ]
    return ("packed", "lengths"), ("heads",), _HEADS, body


def _source_caches(node: NodeProto) -> _Body:
    num_kv_heads, head_size = _integer(node, "kv_num_heads"), _integer(node, "head_size")
    kv_width = num_kv_heads * head_size
    body = [
        _node("Constant", "", "widths", value_ints=[kv_width, kv_width]),
        _node("Split", "packed widths", "key_parts value_parts", axis=-1),
        _node("Constant", "", "apart", value_ints=[0, 0, num_kv_heads, head_size]),
        _node("Constant", "", "axes", value_ints=[1, 2]),
        _node("Unsqueeze", "lengths axes", "ends"),
        _node("Cast", "ends", "whole_ends", to=TensorProto.INT64),
        _node("Constant", "", "one", value_int=1),
        _node("Sub", "whole_ends one", "last"),
        _node("Constant", "", "width", value_ints=[1, 1, kv_width]),
        _node("Expand", "last width", "places"),
    ]
    for part in ("key", "value"):
        body += [
            _node("Reshape", f"{part}_parts apart", f"{part}_heads"),
            _node("Transpose", f"{part}_heads", part, perm=[0, 2, 1, 3]),
            _node("GatherElements", f"{part}_parts places", f"last_{part}", axis=1),
        ]
    outputs = ("key", "value", "last_key", "last_value")
    return ("packed", "lengths"), outputs, ("kv_num_heads", "head_size"), body


def _repeated(part: str, num_heads: int, num_kv_heads: int, head_size: int) -> list[NodeProto]:
    """`part` (B, T, kv width) as `parts` (B, T, query width): MultiHeadAttention knows no groups."""
    if num_heads == num_kv_heads:
        return [_node("Identity", part, f"{part}s")]
    groups = num_heads // num_kv_heads
    return [
        _node("Constant", "", f"{part}_apart", value_ints=[0, 0, num_kv_heads, 1, head_size]),
        _node("Reshape", f"{part} {part}_apart", f"{part}_heads"),
        _node("Constant", "", f"{part}_groups", value_ints=[1, 1, 1, groups, 1]),
        _node("Expand", f"{part}_heads {part}_groups", f"{part}_repeated"),
        _node("Constant", "", f"{part}_together", value_ints=[0, 0, num_heads * head_size]),
        _node("Reshape", f"{part}_repeated {part}_together", f"{part}s"),
    ]


def _add_norm(node: NodeProto) -> _Body:
    [epsilon] = (attribute.f for attribute in node.attribute if attribute.name == "epsilon")
    body = [
        _node("Add", "x y", "sum"),
        _node("LayerNormalization", "sum weight bias", "normed", axis=-1, epsilon=epsilon),
    ]
    return ("x", "y", "weight", "bias"), ("sum", "normed"), ("epsilon",), body


def _best_tokens(_: NodeProto) -> _Body:
    body = [
        _node("LogSoftmax", "logits", "log_probabilities", axis=-1),
        _node("TopK", "log_probabilities number", "best places", axis=-1),  # the first of equals first
    ]
    return ("logits", "number", "needed"), ("log_probabilities", "best", "places"), (), body


def _int8_linear(_: NodeProto) -> _Body:
    body = [
        _node("QuantizeLinear", "x scale zero_point", "quantized"),
        _node(
            "MatMulIntegerToFloat", "quantized weight scale column_scales zero_point - bias", "y", _CONTRIB
        ),
    ]
    return ("x", "scale", "zero_point", "weight", "column_scales", "bias"), ("y",), (), body


def _integer(node: NodeProto, name: str) -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == name)


_BODIES = {
    "SelfAttention": _self_attention,
    "CrossAttention": _cross_attention,
    "EncoderAttention": _encoder_attention,
    "SourceCaches": _source_caches,
    "AddNorm": _add_norm,
    "BestTokens": _best_tokens,
    "Int8Linear": _int8_linear,
}
