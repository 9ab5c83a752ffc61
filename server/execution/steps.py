"""Runs of the decode graphs over the first B rows, bound to the memory of slots and caches.

`StepRunner` is the protocol of one step. `HostStepRunner` has all in numpy's memory, `device_steps` on an accelerator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.graph_names import step_name, steps_per_run
from dragoman.server.bundle.manifest import GraphRecord, Manifest
from dragoman.server.decoding.candidates import Predictions, best_of_rows
from dragoman.server.execution.cache_memory import Buffer, CacheMemory, bind_caches
from dragoman.server.execution.slots import Slots

__all__ = ["HostStepRunner", "MultiStepRunner", "StepRunner", "bind_step"]

_BEST_STEP = 4
"""Each number of best tokens is bound by itself; a step's time grows with it, 8 to 16 by an eighth."""


class StepRunner(Protocol):
    """One step of the first rows."""

    def rounded(self, num_best: int) -> int:
        """Returns one of few numbers, not much larger: what is bound to so many rows and best tokens stays bound."""

    def run(self, num_rows: int, num_best: int, *, needs_all: bool) -> Predictions:
        """Run `decode` on what the first `num_rows` slots feed. The slots stay as they are.

        Returns:
            The `num_best` best next tokens of each row: views that the next call overwrites. Unless `needs_all`, the
            others' log-probabilities may be anything.
        """


@dataclass(slots=True)
class _BoundStep:
    """`decode` bound to so many rows and, where the graph gives the best tokens, to where it puts so many of them."""

    binding: ort.IOBinding
    num_best: NDArray[np.int64] | None = None
    best: NDArray[np.float32] | None = None
    best_token_ids: NDArray[np.int64] | None = None


class HostStepRunner:
    """A `StepRunner` in numpy's memory."""

    def __init__(
        self, manifest: Manifest, session: ort.InferenceSession, slots: Slots, memory: CacheMemory
    ) -> None:
        self._graph = manifest.graphs["decode"]
        self._session = session
        self._slots = slots
        self._memory = memory
        self._log_probabilities: NDArray[np.float32] = np.zeros(
            (slots.num_slots, manifest.dimensions.vocabulary_size), np.float32
        )
        self._needs_all: NDArray[np.int64] = np.ones(1, np.int64)
        self._steps: dict[tuple[int, int], _BoundStep] = {}

    def rounded(self, num_best: int) -> int:
        """As `StepRunner.rounded`."""
        return num_best if num_best <= 2 else -(-num_best // _BEST_STEP) * _BEST_STEP

    def run(self, num_rows: int, num_best: int, *, needs_all: bool) -> Predictions:
        """As `StepRunner.run`."""
        self._needs_all[0] = needs_all
        step = self._steps.get((num_rows, num_best))
        if step is None:
            step = self._steps[num_rows, num_best] = self._bind(num_rows, num_best)
        self._session.run_with_iobinding(step.binding)
        log_probabilities = self._log_probabilities[:num_rows]
        if step.best is None or step.best_token_ids is None:
            return Predictions(log_probabilities, *best_of_rows(log_probabilities, num_best))
        return Predictions(log_probabilities, step.best, step.best_token_ids)

    def _bind(self, num_rows: int, num_best: int) -> _BoundStep:
        binding = self._session.io_binding()
        bind_step(binding, self._graph, _host_inputs(self._slots), self._memory, num_rows)
        binding.bind_output("log_probabilities", *Buffer.of(self._log_probabilities).rows(0, num_rows))
        step = _BoundStep(binding)
        if "num_best" in self._graph.inputs:
            step.best = np.zeros((num_rows, num_best), np.float32)
            step.best_token_ids = np.zeros((num_rows, num_best), np.int64)
            step.num_best = np.array([num_best])
            binding.bind_input("num_best", *Buffer.of(step.num_best).rows(0, 1))
            binding.bind_input("needs_all", *Buffer.of(self._needs_all).rows(0, 1))
            binding.bind_output("best", *Buffer.of(step.best).rows(0, num_rows))
            binding.bind_output("best_token_ids", *Buffer.of(step.best_token_ids).rows(0, num_rows))
        return step


class MultiStepRunner:
    """Several greedy steps of the first rows in one run of `decode_steps`, in numpy's memory.

    Attributes:
        steps_per_run: how many.
    """

    def __init__(
        self, manifest: Manifest, session: ort.InferenceSession, slots: Slots, memory: CacheMemory
    ) -> None:
        self._graph = manifest.graphs["decode_steps"]
        self._session = session
        self._slots = slots
        self._memory = memory
        self.steps_per_run = steps_per_run(self._graph.outputs)
        self._chosen: NDArray[np.int64] = np.zeros((self.steps_per_run, slots.num_slots), np.int64)
        self._scores: NDArray[np.float32] = np.zeros((self.steps_per_run, slots.num_slots), np.float32)
        self._bindings: dict[int, ort.IOBinding] = {}

    def run(self, num_rows: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Feed what the first `num_rows` slots feed, then the most probable token each time. The slots stay.

        Returns:
            Token ids and their log-probabilities, (steps_per_run, num_rows): views that the next call overwrites.
        """
        binding = self._bindings.get(num_rows)
        if binding is None:
            binding = self._bindings[num_rows] = self._bind(num_rows)
        self._session.run_with_iobinding(binding)
        return self._chosen[:, :num_rows], self._scores[:, :num_rows]

    def _bind(self, num_rows: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        bind_step(binding, self._graph, _host_inputs(self._slots), self._memory, num_rows)
        for index, (chosen, scores) in enumerate(zip(self._chosen, self._scores, strict=True)):
            for name, array in (("token_ids", chosen), ("log_probabilities", scores)):
                binding.bind_output(step_name(index, name), *Buffer.of(array).rows(0, num_rows))
        return binding


def _host_inputs(slots: Slots) -> dict[str, Buffer]:
    """The slots' numbers, where they lie."""
    return {name: Buffer.of(numbers) for name, numbers in slots.inputs.items()}


def bind_step(
    binding: ort.IOBinding,
    graph: GraphRecord,
    inputs: Mapping[str, Buffer],
    memory: CacheMemory,
    num_rows: int,
) -> None:
    """Bind the first `num_rows` rows of all that a step takes: the slots' numbers, `inputs`, and the caches."""
    for name, buffer in inputs.items():
        if name in graph.inputs:
            binding.bind_input(name, *buffer.rows(0, num_rows))
    bind_caches(binding, graph, memory, 0, num_rows)
