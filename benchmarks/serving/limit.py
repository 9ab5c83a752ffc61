"""How far decoding is from its own matrix products: the floor under any engine on this ONNX Runtime.

Two floors. `BareProducts` runs the products of a decode step and nothing else, at the workload's own rows: what no
better attention, normalisation or scheduling can undercut. `peak_rate` is the rate of the same products at 256 rows,
where each weight that is read is used often: what no better batching can.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
import onnxruntime as ort
from benchmarks.serving.systems import Reading, Setting, Workload
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from dragoman.model.transformer import TranslationModel

__all__ = ["BareProducts", "operations_per_token", "products", "workload_operations"]

_PEAK_ROWS: Final = 256
_PEAK_TURNS: Final = 5
_PEAK_TURN_S: Final = 0.5
_ZERO_POINT: Final = 128
Shape = tuple[int, int]  # K, N


def products(model: TranslationModel) -> Iterator[Shape]:
    """Shape of each matrix product of one decode step."""
    for layer in model.decoder_layers:
        cross_memory = layer.cross_attention.key_value  # computed once a source
        for module in layer.modules():
            if isinstance(module, nn.Linear) and module is not cross_memory:
                yield module.in_features, module.out_features
    dims = model.dims
    yield dims.width, dims.vocabulary_size


def operations_per_token(model: TranslationModel) -> tuple[int, int]:
    """Multiplications and additions by weights: for a token of a source, for a token of an answer."""
    encoder = [module for layer in model.encoder_layers for module in layer.modules()]
    memory = [layer.cross_attention.key_value for layer in model.decoder_layers]
    source = sum(module.weight.numel() for module in [*encoder, *memory] if isinstance(module, nn.Linear))
    return 2 * source, 2 * sum(k * n for k, n in products(model))


def workload_operations(model: TranslationModel, workload: Workload, num_tokens: int) -> int:
    """All of them in a workload that gave `num_tokens` tokens of answers."""
    of_source, of_answer = operations_per_token(model)
    return of_source * sum(map(len, workload.inputs)) + of_answer * num_tokens * workload.beam_size


class BareProducts:
    """A decode step's products on one thread a core, without anything between them."""

    name = "bare products"

    def __init__(
        self, model: TranslationModel, precision: Literal["fp32", "int8"], num_cores: int, seed: int = 0
    ) -> None:
        self.precision: str = precision
        self._num_cores = num_cores
        self._shapes = list(products(model))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        graph = _graph(self._shapes, precision, np.random.default_rng(seed))
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def settings(self, workload: Workload) -> list[Setting]:
        return [{}] if workload.forced and workload.beam_size == 1 and workload.num_rows else []

    def prepare(self, setting: Setting) -> None:
        pass

    def run(self, workload: Workload, turn_s: float) -> Reading:
        assert workload.num_rows is not None
        num_lanes = len(workload.inputs) // workload.num_rows
        steps_per_second = self._steps_per_second(workload.num_rows, num_lanes, turn_s)
        num_tokens = len(workload.inputs) * workload.max_tokens
        return Reading(workload.max_tokens / steps_per_second, num_tokens)

    def peak_rate(self) -> float:
        """Operations a second of all cores at many rows; the best of some turns, as it is a limit."""
        operations = 2 * _PEAK_ROWS * sum(k * n for k, n in self._shapes) * self._num_cores
        turns = [
            self._steps_per_second(_PEAK_ROWS, self._num_cores, _PEAK_TURN_S) for _ in range(_PEAK_TURNS)
        ]
        return operations * max(turns)

    def close(self) -> None:
        pass

    def _steps_per_second(self, num_rows: int, num_lanes: int, turn_s: float) -> float:
        """Steps a second of one lane, while all of them run; the mean over the lanes."""
        rates = [0.0] * num_lanes

        def run(lane: int) -> None:
            binding = self._bind(num_rows)
            self._session.run_with_iobinding(binding)
            num_steps, start_s = 0, time.perf_counter()
            while not num_steps or time.perf_counter() - start_s < turn_s:
                self._session.run_with_iobinding(binding)
                num_steps += 1
            rates[lane] = num_steps / (time.perf_counter() - start_s)

        threads = [threading.Thread(target=run, args=(lane,)) for lane in range(num_lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates) / num_lanes

    def _bind(self, num_rows: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        kind = {"fp32": np.float32, "int8": np.uint8}[self.precision]
        for node in self._session.get_inputs():
            shape = num_rows, int(node.name.removeprefix("x"))
            rows: NDArray[np.generic] = np.full(shape, 100, kind)
            binding.bind_cpu_input(node.name, rows)
        for node, (_, n) in zip(self._session.get_outputs(), self._shapes, strict=True):
            out = np.float32 if self.precision == "fp32" else np.int32
            value = ort.OrtValue.ortvalue_from_shape_and_type([num_rows, n], out)
            binding.bind_ortvalue_output(node.name, value)
        return binding


def _graph(shapes: list[Shape], precision: str, rng: np.random.Generator) -> bytes:
    """One product for each shape, each with a matrix of its own; products of one depth share an input."""
    integer = precision == "int8"
    kinds = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    nodes, constants, outputs = (
        [],
        [numpy_helper.from_array(np.array(_ZERO_POINT, np.uint8), "zero_point")],
        [],
    )
    for index, (k, n) in enumerate(shapes):
        weight = (
            rng.integers(-63, 64, (k, n), np.int8) if integer else rng.standard_normal((k, n), np.float32)
        )
        constants.append(numpy_helper.from_array(weight, f"w{index}"))
        names = [f"x{k}", f"w{index}"]
        nodes.append(
            helper.make_node("MatMulInteger", [*names, "zero_point"], [f"y{index}"])
            if integer
            else helper.make_node("MatMul", names, [f"y{index}"])
        )
        outputs.append(helper.make_tensor_value_info(f"y{index}", kinds[1], ["rows", n]))
    inputs = [
        helper.make_tensor_value_info(f"x{k}", kinds[0], ["rows", k]) for k in Counter(k for k, _ in shapes)
    ]
    graph = helper.make_graph(nodes, "products", inputs, outputs, constants if integer else constants[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())
