"""Row-wise dynamic int8: every product with a weight becomes an integer product.

For each row of the activations x and each column of the weight w:

    scale = max|x| / 127          xq = round(x / scale) + 128       unsigned 8 bits
    wq = round(w / column scale)  signed, 7 bits (-63 .. 63)
    y = (xq - 128) @ wq  (exact, 32 bits)  *  scale * column scale  + bias

One scale a row, not one a batch, keeps the answer to a request independent of its neighbours in the batch,
which `DynamicQuantizeMatMul` does not. Seven bits, not eight, for the weights: CPUs without VNNI add pairs of
8-bit products in 16 bits, and 2 * 255 * 63 still fits where 2 * 255 * 127 saturates silently (onnxruntime
docs, "Quantize ONNX models", on U8S8). Integer products are then exact, and so equal, on every machine.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["quantize"]

MAX_WEIGHT = 63
ZERO_POINT = 128
_SMALLEST_SCALE = 1e-30  # a row of zeros must not divide by zero


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which every MatMul and Gemm with a constant matrix is an integer product."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    _Rewriter(quantized.graph).run()
    onnx.checker.check_model(quantized)
    return quantized


class _Rewriter:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.rows_of: dict[
            str, tuple[str, str]
        ] = {}  # an activation read by several products is quantized once
        self.weights: dict[tuple[str, bool], tuple[str, str]] = {}

    def run(self) -> None:
        self._constant("int8_axis", np.array([-1], np.int64))
        self._constant("int8_inverse_127", np.float32(1 / 127))
        self._constant("int8_smallest_scale", np.float32(_SMALLEST_SCALE))
        self._constant("int8_zero_point", np.float32(ZERO_POINT))
        self._constant("int8_zero_point_u8", np.uint8(ZERO_POINT))
        for node in self.graph.node:
            if node.op_type in ("MatMul", "Gemm") and node.input[1] in self.constants:
                self._rewrite_product(node)
            else:
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self._drop_unused_constants()

    def _rewrite_product(self, node: onnx.NodeProto) -> None:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes.get("alpha", 1.0) == 1.0, node.name
        assert attributes.get("beta", 1.0) == 1.0, node.name
        assert not attributes.get("transA"), node.name
        x, output = node.input[0], node.output[0]
        weight, column_scales = self._quantized_weight(
            node.input[1], transposed=bool(attributes.get("transB"))
        )
        rows, row_scales = self._quantized_rows(x)
        product = self._node("MatMulInteger", [rows, weight, "int8_zero_point_u8"], f"{output}_int32")
        real = self._node("Cast", [product], f"{output}_float", to=TensorProto.FLOAT)
        scaled = self._node("Mul", [real, row_scales], f"{output}_rows_scaled")
        if len(node.input) > 2 and node.input[2]:
            product = self._node("Mul", [scaled, column_scales], f"{output}_scaled")
            self._node("Add", [product, node.input[2]], output)
        else:
            self._node("Mul", [scaled, column_scales], output)

    def _quantized_rows(self, x: str) -> tuple[str, str]:
        """Names of x in unsigned 8 bits (..., K) and of its scales (..., 1)."""
        if x not in self.rows_of:
            magnitude = self._node("Abs", [x], f"{x}_magnitude")
            largest = self._node("ReduceMax", [magnitude, "int8_axis"], f"{x}_largest", keepdims=1)
            scale = self._node("Mul", [largest, "int8_inverse_127"], f"{x}_raw_scale")
            scale = self._node("Max", [scale, "int8_smallest_scale"], f"{x}_scale")
            ratio = self._node("Div", [x, scale], f"{x}_ratio")
            rounded = self._node("Round", [ratio], f"{x}_rounded")
            shifted = self._node("Add", [rounded, "int8_zero_point"], f"{x}_shifted")
            self.rows_of[x] = self._node("Cast", [shifted], f"{x}_uint8", to=TensorProto.UINT8), scale
        return self.rows_of[x]

    def _quantized_weight(self, name: str, *, transposed: bool) -> tuple[str, str]:
        """Names of the weight in 7 signed bits (K, N) and of its scales (N,)."""
        key = name, transposed
        if key not in self.weights:
            weight: NDArray[np.float32] = numpy_helper.to_array(self.constants[name])
            weight = weight.T if transposed else weight
            scales = np.maximum(np.abs(weight).max(axis=0) / MAX_WEIGHT, _SMALLEST_SCALE).astype(np.float32)
            quantized = np.clip(np.round(weight / scales), -MAX_WEIGHT, MAX_WEIGHT).astype(np.int8)
            self.weights[key] = (
                self._constant(f"{name}_int8", np.ascontiguousarray(quantized)),
                self._constant(f"{name}_scales", scales),
            )
        return self.weights[key]

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _drop_unused_constants(self) -> None:
        used = set(self._names_used())
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        # The exporter annotates shapes of constants that may be gone.
        known = {tensor.name for tensor in kept} | {name for node in self.graph.node for name in node.output}
        infos = [info for info in self.graph.value_info if info.name in known]
        del self.graph.value_info[:]
        self.graph.value_info.extend(infos)

    def _names_used(self) -> Iterator[str]:
        for node in self.graph.node:
            yield from node.input
        yield from (output.name for output in self.graph.output)
