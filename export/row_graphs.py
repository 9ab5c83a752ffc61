"""Graphs that copy keys and values where Python cannot index them: on an accelerator
(`dragoman.server.execution.device_memory`).

    copy_tokens   those at places `sources` -> places `targets`; none is both
    fill_tokens   what a graph computed, a tensor a cache -> places `targets`
    read_tokens   those at places `sources` -> the host, for the prefix cache; generation only

All caches of one kind are a table (places, head size), with a place for each cache, row, head and token. A place is the
sum of a base, where a row of a cache begins, and of an offset in it: bases are (N, 1, 1), offsets (kv heads, tokens),
both int64. So an index moves one token of one head: CUDA's `ScatterND` copies what an index stands for in one thread.
`caches` and `new_caches` are bound to the same memory, where it writes in place.

They compute nothing, so no precision is lost: written node by node, there is nothing in them to trace.
"""

from collections.abc import Iterator, Sequence

import onnx
from onnx import NodeProto, TensorProto, helper

from dragoman.export.graph import Graph
from dragoman.server.bundle.graph_names import OWN, caches_by_kind, computed_name

__all__ = ["row_graphs"]

_OPSET = 15  # of ScatterND without a reduction, which writes and nothing else
_LAST_AXIS = helper.make_tensor("last_axis", TensorProto.INT64, [1], [-1])
_TOKENS = ("rows", "heads", "tokens", "head_size")


def row_graphs(decode: Graph) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Names and models for a bundle with this `decode`, whose inputs say how many caches there are of a kind."""
    num_caches = len(caches_by_kind(decode.inputs)[OWN])
    yield "copy_tokens", _model("copy_tokens", [*_read("tokens"), *_write("tokens")], ("sources", "targets"))
    computed = [computed_name(index) for index in range(num_caches)]
    join = helper.make_node("Concat", computed, ["tokens"], axis=0)
    yield "fill_tokens", _model("fill_tokens", [join, *_write("tokens")], ("targets",), computed)
    if "source_lengths" not in decode.inputs:
        yield "read_tokens", _model("read_tokens", _read("tokens"), ("sources",))


def _read(name: str) -> list[NodeProto]:
    places = _places("sources")
    return [*places, helper.make_node("GatherND", ["caches", *places[-1].output], [name])]


def _write(name: str) -> list[NodeProto]:
    places = _places("targets")
    return [*places, helper.make_node("ScatterND", ["caches", *places[-1].output, name], ["new_caches"])]


def _places(bases: str) -> list[NodeProto]:
    return [
        helper.make_node("Add", [bases, "offsets"], [f"{bases}_places"]),
        helper.make_node("Unsqueeze", [f"{bases}_places", "last_axis"], [f"{bases}_indices"]),
    ]


def _model(
    name: str, nodes: Sequence[NodeProto], bases: Sequence[str], computed: Sequence[str] = ()
) -> onnx.ModelProto:
    table = TensorProto.FLOAT16, ["places", "head_size"]
    inputs = [
        *(helper.make_tensor_value_info(each, TensorProto.INT64, ["rows", 1, 1]) for each in bases),
        helper.make_tensor_value_info("offsets", TensorProto.INT64, ["heads", "tokens"]),
        *(
            helper.make_tensor_value_info(each, TensorProto.FLOAT16, ["inputs", *_TOKENS[1:]])
            for each in computed
        ),
        helper.make_tensor_value_info("caches", *table),
    ]
    [output] = nodes[-1].output
    outputs = [
        helper.make_tensor_value_info("new_caches", *table)
        if output == "new_caches"
        else helper.make_tensor_value_info(output, TensorProto.FLOAT16, _TOKENS)
    ]
    graph = helper.make_graph(nodes, name, inputs, outputs, [_LAST_AXIS])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
