"""A `Graph` to an ONNX model in memory, by PyTorch's own exporter; then our operators and their functions."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import onnx.inliner
import torch

from dragoman.export.functions import add_functions
from dragoman.export.fusion import fuse
from dragoman.export.graph import Graph

__all__ = ["to_onnx"]

OPSET = 20


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """Export with `torch.onnx.export(dynamo=True)`: names, dynamic axes and weights included."""
    axes = tuple(graph.dynamic_axes[name] for name in graph.inputs)
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            # The decode graph takes its tensors as one variadic argument.
            dynamic_shapes=(axes,) if graph.variadic else axes,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _drop_traces(model.graph)
    _free_number_of_best(model.graph)
    halves = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    if not halves:
        fuse(model.graph)
    add_functions(model)
    onnx.checker.check_model(model)
    # Kernels are for CPUs, where nobody runs halves: those graphs say at once what a device runs.
    return onnx.inliner.inline_local_functions(model) if halves else model


def _free_number_of_best(graph: onnx.GraphProto) -> None:
    """How many are best is said by an input's value, which the tracer takes for what it was in the example."""
    for value in (*graph.output, *graph.value_info):
        if value.name in {"best", "best_token_ids"}:
            value.type.tensor_type.shape.dim[1].dim_param = "num_best"


def _drop_traces(graph: onnx.GraphProto) -> None:
    """The exporter notes at each node from which file and line it came: paths of this machine, in every bundle."""
    values = [*graph.input, *graph.output, *graph.value_info]
    noted_parts: list[Any] = [graph, *graph.node, *values, *graph.initializer]  # no common type has the field
    for noted in noted_parts:
        del noted.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on absent optional packages and shared axis names from the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
