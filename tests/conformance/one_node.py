"""Models of one of our operators each, with inputs for them, run with kernels and without."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dragoman.export.functions import DOMAIN, add_functions
from dragoman.server.errors import ProviderUnavailable
from dragoman.server.execution.kernels import KERNELS, NO_KERNELS, register_kernels, select_kernels

Arrays = dict[str, NDArray[Any]]
KINDS = {np.float32: "FLOAT", np.int32: "INT32", np.int64: "INT64"}
HEADS = [(4, 4, 40), (4, 2, 8), (6, 1, 16), (2, 2, 32), (2, 1, 48), (3, 3, 64), (2, 2, 88)]


def available() -> list[str]:
    found = []
    for name in KERNELS:
        try:
            found.append(select_kernels(name))
        except ProviderUnavailable:
            continue
    return found


AVAILABLE = available()


def one_node(
    op_type: str, inputs: Arrays, constants: Arrays, outputs: Sequence[str], **attributes: Any
) -> bytes:
    """A model of one node; `constants` follow its inputs."""
    node = helper.make_node(op_type, [*inputs, *constants], outputs, domain=DOMAIN, **attributes)
    kinds = {np.dtype(kind): getattr(TensorProto, name) for kind, name in KINDS.items()}
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(name, kinds[array.dtype], [None] * array.ndim)
            for name, array in inputs.items()
        ],
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name == "places" else TensorProto.FLOAT, None
            )
            for name in outputs
            if name
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    add_functions(model)
    return model.SerializeToString()


def session(model: bytes, kernels: str, num_threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4
    if select_kernels(kernels) != NO_KERNELS:
        register_kernels(options)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def both(model: bytes, kernels: str, inputs: Arrays, num_threads: int = 1) -> tuple[list[Any], list[Any]]:
    """Results of the kernels, and of ONNX Runtime's own operators."""
    ours = session(model, kernels, num_threads).run(None, inputs)
    return ours, session(model, NO_KERNELS).run(None, inputs)


def heads_of(sizes: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("num_heads", "kv_num_heads", "head_size"), sizes, strict=True))


def decode_inputs(sizes: tuple[int, int, int], rows: int, capacity: int, *, cross: bool) -> Arrays:
    num_heads, num_kv_heads, size = sizes
    rng = np.random.default_rng(rows)

    def some(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    caches = {"past_key": some(rows, num_kv_heads, capacity, size)}
    caches["past_value"] = some(rows, num_kv_heads, capacity, size)
    if not cross:
        lengths = rng.integers(0, capacity, rows).astype(np.int32)
        lengths[0] = capacity - 1
        return {"packed": some(rows, (num_heads + 2 * num_kv_heads) * size), **caches, "lengths": lengths}
    lengths = rng.integers(1, capacity + 1, rows).astype(np.int32)
    last = {
        f"last_{part}": caches[f"past_{part}"][np.arange(rows), :, lengths - 1].reshape(rows, 1, -1)
        for part in ("key", "value")
    }
    return {"query": some(rows, num_heads * size), **last, **caches, "lengths": lengths}


def decode_model(sizes: tuple[int, int, int], inputs: Arrays) -> bytes:
    op_type = "CrossAttention" if "query" in inputs else "SelfAttention"
    return one_node(op_type, inputs, {}, ["heads", "key", "value"], **heads_of(sizes))


def linear_model(
    depth: int, columns: int, zero_point: int, x: NDArray[np.float32], largest: int = 63
) -> bytes:
    rng = np.random.default_rng(depth)
    constants: Arrays = {
        "scale": np.array(1, np.float32),
        "zero_point": np.array(zero_point, np.uint8),
        "weight": rng.integers(-largest, largest + 1, (depth, columns)).astype(np.int8),
        "column_scales": np.array(2.0 ** rng.integers(-4, 4, columns), np.float32),
        "bias": rng.integers(-9, 9, columns).astype(np.float32),
    }
    constants["weight"][0, 0] = largest
    return one_node("Int8Linear", {"x": x}, constants, ["y"])
