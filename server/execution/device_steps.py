"""Steps on an accelerator: the slots' numbers cross, and what tokens are chosen from."""

import itertools
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.manifest import Manifest
from dragoman.server.decoding.candidates import Predictions, best_of_rows
from dragoman.server.execution.cache_memory import Buffer
from dragoman.server.execution.device_memory import DeviceMemory
from dragoman.server.execution.slots import Slots
from dragoman.server.execution.steps import bind_step

__all__ = ["CAPTURED_GRAPH", "DeviceStepRunner"]

CAPTURED_GRAPH = "decode"
"""CUDA records what it launches for so many rows, and replays it: launching it anew takes longer than it runs."""

_capture_ids = itertools.count(1)


@dataclass(slots=True)
class _CapturedStep:
    """`decode` bound to so many rows and so many best tokens, all outputs at addresses that stay."""

    binding: ort.IOBinding
    options: ort.RunOptions | None
    num_best: NDArray[np.int64]  # read at an address as well
    log_probabilities: ort.OrtValue
    best: ort.OrtValue | None = None
    best_token_ids: ort.OrtValue | None = None


class DeviceStepRunner:
    """A `StepRunner` on the device of `memory`.

    A power of two of rows takes a step, so rows beyond those that are asked for lose what they held.
    """

    def __init__(
        self, manifest: Manifest, session: ort.InferenceSession, slots: Slots, memory: DeviceMemory
    ) -> None:
        self._graph = manifest.graphs["decode"]
        self._session = session
        self._slots = slots
        self._memory = memory
        self._vocabulary_size = manifest.dimensions.vocabulary_size
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(numbers.copy(), memory.device, 0)
            for name, numbers in slots.inputs.items()
        }
        self._needs_all: NDArray[np.int64] = np.ones(1, np.int64)
        self._steps: dict[tuple[int, int], _CapturedStep] = {}
        self._log_probabilities: dict[int, ort.OrtValue] = {}  # by rows: large, and any step's
        # What a step gives as log-probabilities where nobody needs them.
        self._none_needed: NDArray[np.float32] = np.zeros(
            (slots.num_slots, self._vocabulary_size), np.float32
        )

    def rounded(self, num_best: int) -> int:
        """As `StepRunner.rounded`: a power of two, as each number has graphs of its own recorded."""
        return 1 << (num_best - 1).bit_length()

    def run(self, num_rows: int, num_best: int, *, needs_all: bool) -> Predictions:
        """As `StepRunner.run`."""
        self._upload(num_rows)
        width = min(1 << (num_rows - 1).bit_length(), self._slots.num_slots)
        step = self._steps.get((width, num_best)) or self._bind(width, num_best)
        self._session.run_with_iobinding(step.binding, step.options)
        self._steps[width, num_best] = step  # now that it is recorded
        if step.best is None or step.best_token_ids is None:
            log_probabilities = step.log_probabilities.numpy()[:num_rows]
            return Predictions(log_probabilities, *best_of_rows(log_probabilities, num_best))
        # A row of all of them is as long as the vocabulary: where nobody needs them they stay where they are.
        log_probabilities = (step.log_probabilities.numpy() if needs_all else self._none_needed)[:num_rows]
        return Predictions(
            log_probabilities, step.best.numpy()[:num_rows], step.best_token_ids.numpy()[:num_rows]
        )

    def _upload(self, num_rows: int) -> None:
        """Bring the device's copy of the slots' numbers up to date, before a step of the first `num_rows` rows.

        To the device the others have no length: a step of more rows than have to be does nothing beyond their memory.
        """
        lengths = self._slots.inputs["lengths"].copy()
        lengths[num_rows:] = 0
        for name, numbers in {**self._slots.inputs, "lengths": lengths}.items():
            self._inputs[name].update_inplace(numbers)

    def _bind(self, num_rows: int, num_best: int) -> _CapturedStep:
        binding, device = self._session.io_binding(), self._memory.device
        inputs = {
            name: Buffer(device, value.data_ptr(), tuple(value.shape()), self._slots.inputs[name].dtype)
            for name, value in self._inputs.items()
        }
        bind_step(binding, self._graph, inputs, self._memory, num_rows)
        options = None
        if device == "cuda":
            options = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(next(_capture_ids)))

        def output(name: str, num_columns: int, dtype: type[np.generic]) -> ort.OrtValue:
            value = ort.OrtValue.ortvalue_from_shape_and_type([num_rows, num_columns], dtype, device, 0)
            binding.bind_ortvalue_output(name, value)
            return value

        log_probabilities = self._log_probabilities.get(num_rows)
        if log_probabilities is None:
            log_probabilities = output("log_probabilities", self._vocabulary_size, np.float32)
            self._log_probabilities[num_rows] = log_probabilities
        else:
            binding.bind_ortvalue_output("log_probabilities", log_probabilities)
        step = _CapturedStep(binding, options, np.array([num_best]), log_probabilities)
        if "num_best" in self._graph.inputs:
            binding.bind_input("num_best", *Buffer.of(step.num_best).rows(0, 1))
            binding.bind_input("needs_all", *Buffer.of(self._needs_all).rows(0, 1))
            step.best = output("best", num_best, np.float32)
            step.best_token_ids = output("best_token_ids", num_best, np.int64)
        return step
