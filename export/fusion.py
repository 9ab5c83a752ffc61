"""Rewrite parts of a traced graph as operators that do the same in one go."""

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx
from onnx import NodeProto, helper, numpy_helper

from dragoman.export.functions import DOMAIN

__all__ = ["fuse"]


def fuse(graph: onnx.GraphProto) -> None:
    """In place: Add and LayerNormalization become `AddNorm`; Relu before an `Int8Linear` that has no negative goes.

    What nobody reads of a node with several outputs loses its name, so that it need not be computed.
    """
    producers = {name: node for node in graph.node for name in node.output}
    replaced: dict[int, NodeProto | None] = {}
    for fused, nodes in (*_residuals(graph, producers), *_needless_relus(graph, producers)):
        *rest, last = nodes
        replaced |= {id(node): None for node in rest}
        replaced[id(last)] = fused
    kept = [node for each in graph.node if (node := replaced.get(id(each), each)) is not None]
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unread(graph)


_Rewriting = tuple[NodeProto, list[NodeProto]]
"""A new node and those that it stands for, in the place of the last of them."""


def _residuals(graph: onnx.GraphProto, producers: Mapping[str, NodeProto]) -> Iterator[_Rewriting]:
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input)}
    num_norms = Counter(node.input[0] for node in graph.node if node.op_type == "LayerNormalization")
    for norm in graph.node:
        add = producers.get(norm.input[0]) if norm.op_type == "LayerNormalization" else None
        if add is None or add.op_type != "Add" or num_norms[norm.input[0]] > 1:
            continue
        x, y = (shapes.get(name) for name in add.input)
        if x is None or x != y:  # positions are one table for all rows
            continue
        [epsilon] = (attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
        fused = helper.make_node(
            "AddNorm",
            [*add.input, *norm.input[1:]],
            [add.output[0], norm.output[0]],
            domain=DOMAIN,
            epsilon=epsilon,
        )
        yield fused, [add, norm]


def _needless_relus(graph: onnx.GraphProto, producers: Mapping[str, NodeProto]) -> Iterator[_Rewriting]:
    """With a zero point of 0, what is below zero is rounded to zero anyway."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    num_readers = Counter(name for node in graph.node for name in node.input)
    for linear in graph.node:
        relu = producers.get(linear.input[0]) if linear.op_type == "Int8Linear" else None
        if relu is None or relu.op_type != "Relu" or num_readers[relu.output[0]] > 1:
            continue
        if numpy_helper.to_array(constants[linear.input[2]]) == 0:
            fused = helper.make_node(
                "Int8Linear", [*relu.input, *linear.input[1:]], linear.output, domain=DOMAIN
            )
            yield fused, [relu, linear]


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in graph.node:
        if node.domain == DOMAIN and len(node.output) > 1:
            for index, name in enumerate(node.output):
                if name not in read:
                    node.output[index] = ""


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
    return sizes if all(sizes) else None
