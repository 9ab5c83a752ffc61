"""Rows whose caches live on an accelerator: small inputs cross, and what tokens are chosen from."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.manifest import Manifest
from dragoman.server.decoding.candidates import Predictions, best_of_rows
from dragoman.server.execution.arena import Buffer
from dragoman.server.execution.device_arena import DEVICE_TURN, DeviceArena
from dragoman.server.execution.prefix_cache import PrefixCache
from dragoman.server.execution.rows import GraphInputs, Rows
from dragoman.server.execution.sources import Source

__all__ = ["CAPTURED_GRAPH", "DeviceRows"]

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


class DeviceRows(Rows):
    """As `Rows`; a power of two of rows takes a step, so rows beyond those that are asked for lose what they held."""

    arena: DeviceArena
    _max_padding_share = 1.0  # a run costs more than whatever it computes beside

    def __init__(
        self,
        manifest: Manifest,
        sessions: Mapping[str, ort.InferenceSession],
        arena: DeviceArena,
        prefix_cache: PrefixCache,
    ) -> None:
        super().__init__(manifest, sessions, arena, prefix_cache)
        self.encodes_ahead = False
        self.steps_per_run = 0  # `decode_steps` is for CPUs
        self._captured: dict[tuple[int, int], _CapturedStep] = {}
        self._device_log_probabilities: dict[int, ort.OrtValue] = {}  # by rows: large, and any step's

    def start(self, rows: Sequence[int], sources: Sequence[Source], ahead: Sequence[Source] = ()) -> int:
        """As `Rows.start`, sources of all lengths in one run, and none ahead."""
        del ahead
        with DEVICE_TURN:
            return super().start(rows, sources)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """As `Rows.copy`."""
        with DEVICE_TURN:
            super().copy(sources, targets)

    def fork(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """As `Rows.fork`."""
        with DEVICE_TURN:
            super().fork(sources, targets)

    def align(self, source_ids: Sequence[int], outputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """As `Rows.align`."""
        with DEVICE_TURN:
            return super().align(source_ids, outputs)

    def decode(self, num_rows: int, num_best: int = 1, *, needs_all: bool = True) -> Predictions:
        """As `Rows.decode`."""
        with DEVICE_TURN:
            return super().decode(num_rows, num_best, needs_all=needs_all)

    def _rounded(self, num_best: int) -> int:
        """A power of two: each number has graphs of its own recorded."""
        return 1 << (num_best - 1).bit_length()

    def _predict(self, num_rows: int, num_best: int, *, needs_all: bool) -> Predictions:
        self.arena.upload(num_rows)
        width = min(1 << (num_rows - 1).bit_length(), self.arena.num_rows)
        step = self._captured.get((width, num_best)) or self._bind_captured(width, num_best)
        self._sessions["decode"].run_with_iobinding(step.binding, step.options)
        self._captured[width, num_best] = step  # now that it is recorded
        if step.best is None or step.best_token_ids is None:
            log_probabilities = step.log_probabilities.numpy()[:num_rows]
            return Predictions(log_probabilities, *best_of_rows(log_probabilities, num_best))
        # A row of all of them is as long as the vocabulary: where nobody needs them they stay where they are.
        log_probabilities = (step.log_probabilities.numpy() if needs_all else self._log_probabilities)[
            :num_rows
        ]
        return Predictions(
            log_probabilities, step.best.numpy()[:num_rows], step.best_token_ids.numpy()[:num_rows]
        )

    def _bind_captured(self, num_rows: int, num_best: int) -> _CapturedStep:
        record, binding = self._manifest.graphs["decode"], self._sessions["decode"].io_binding()
        self.arena.bind_step(binding, record, num_rows)
        options = None
        if self.arena.device == "cuda":
            options = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(next(_capture_ids)))

        def output(name: str, num_columns: int, dtype: type[np.generic]) -> ort.OrtValue:
            shape = [num_rows, num_columns]
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self.arena.device, 0)
            binding.bind_ortvalue_output(name, value)
            return value

        log_probabilities = self._device_log_probabilities.get(num_rows)
        if log_probabilities is None:
            vocabulary_size = self._manifest.dimensions.vocabulary_size
            log_probabilities = output("log_probabilities", vocabulary_size, np.float32)
            self._device_log_probabilities[num_rows] = log_probabilities
        else:
            binding.bind_ortvalue_output("log_probabilities", log_probabilities)
        step = _CapturedStep(binding, options, np.array([num_best]), log_probabilities)
        if "num_best" in record.inputs:
            binding.bind_input("num_best", *Buffer.of(step.num_best).rows(0, 1))
            binding.bind_input("needs_all", *Buffer.of(self._needs_all).rows(0, 1))
            step.best = output("best", num_best, np.float32)
            step.best_token_ids = output("best_token_ids", num_best, np.int64)
        return step

    def _run_reading(self, graph: str, inputs: GraphInputs) -> Mapping[str, Any]:
        binding, names = self._sessions[graph].io_binding(), self._manifest.graphs[graph].outputs
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(name, self.arena.device)
        self._sessions[graph].run_with_iobinding(binding)
        return dict(zip(names, binding.get_outputs(), strict=True))
