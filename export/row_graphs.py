"""Graphs that move rows of caches where Python cannot index them: on an accelerator (`server.device_arena`).

    copy_rows   caches of rows `sources` -> rows `targets`; none is both
    fill_rows   what `encode` computed, or a prompt's known beginning -> rows `rows`, padded with zeros
    read_rows   tokens `positions` of one row -> for the prefix cache; generation only

Indices are (K, 1) int64. Outputs are bound to the memory of the caches they come from, where `ScatterND` writes rows
in place. They compute nothing, so no precision is lost: written node by node, there is nothing in them to trace.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper
from torch import Tensor

from export.graph import Graph

__all__ = ["row_graphs"]

_OPSET = 15  # of ScatterND without a reduction, which writes and nothing else


def row_graphs(decode: Graph) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Names and models for the caches of `decode`, whose sample inputs say their shapes; all of fp16."""
    caches = {name: tensor for name, tensor in decode.inputs.items() if tensor.ndim > 1}
    translates = "source_lengths" in decode.inputs
    yield "copy_rows", _copy_rows(caches)
    yield (
        "fill_rows",
        _fill_rows({name: caches[name] for name in caches if not translates or "cross" in name}),
    )
    if not translates:
        yield "read_rows", _read_rows(caches)


def _copy_rows(caches: dict[str, Tensor]) -> onnx.ModelProto:
    nodes = []
    for name in caches:
        nodes.append(helper.make_node("GatherND", [name, "sources"], [f"moved_{name}"]))
        nodes.append(helper.make_node("ScatterND", [name, "targets", f"moved_{name}"], [f"new_{name}"]))
    inputs = [_indices("sources"), _indices("targets"), *(_cache(name, name, caches) for name in caches)]
    return _model("copy_rows", nodes, inputs, [_cache(f"new_{name}", name, caches) for name in caches])


def _fill_rows(caches: dict[str, Tensor]) -> onnx.ModelProto:
    """Keys and values (K, kv heads, tokens, head size) get zeros behind them up to the caches' capacity."""
    # Every one of them has as many tokens, and as much room, as the first.
    first = next(name for name, tensor in caches.items() if tensor.ndim == 4)
    none = helper.make_tensor("none", TensorProto.INT64, [1], [0])
    before = helper.make_tensor("before", TensorProto.INT64, [6], [0] * 6)
    nodes = [
        helper.make_node("Shape", [first], ["capacity"], start=2, end=3),
        helper.make_node("Shape", [f"computed_{first}"], ["num_tokens"], start=2, end=3),
        helper.make_node("Sub", ["capacity", "num_tokens"], ["missing"]),
        helper.make_node("Concat", ["before", "missing", "none"], ["padding"], axis=0),
    ]
    for name, tensor in caches.items():
        computed = f"computed_{name}"
        if tensor.ndim == 4:
            nodes.append(helper.make_node("Pad", [computed, "padding"], [f"padded_{name}"]))
            computed = f"padded_{name}"
        nodes.append(helper.make_node("ScatterND", [name, "rows", computed], [f"new_{name}"]))
    inputs = [
        _indices("rows"),
        *(_cache(f"computed_{name}", name, caches, rows="inputs", tokens="tokens") for name in caches),
        *(_cache(name, name, caches) for name in caches),
    ]
    outputs = [_cache(f"new_{name}", name, caches) for name in caches]
    return _model("fill_rows", nodes, inputs, outputs, [none, before])


def _read_rows(caches: dict[str, Tensor]) -> onnx.ModelProto:
    nodes = [helper.make_node("Gather", [name, "positions"], [f"block_{name}"], axis=2) for name in caches]
    positions = helper.make_tensor_value_info("positions", TensorProto.INT64, ["tokens"])
    inputs = [positions, *(_cache(name, name, caches) for name in caches)]
    return _model(
        "read_rows",
        nodes,
        inputs,
        [_cache(f"block_{name}", name, caches, tokens="tokens") for name in caches],
    )


def _indices(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["inputs", 1])


def _cache(
    name: str,
    cache: str,
    caches: dict[str, Tensor],
    *,
    rows: str = "rows_of_arena",
    tokens: str | None = None,
) -> onnx.ValueInfoProto:
    shape: list[Any] = list(caches[cache].shape)
    shape[0] = rows
    if len(shape) == 4:
        shape[2] = tokens or ("source_capacity" if "cross" in cache else "capacity")
    return helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)


def _model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
