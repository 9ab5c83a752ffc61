"""Graphs that sleep for the time that real ones take: lanes on them stand for cores that a machine does not have.

`install` has the server's backend load them in place of ONNX Runtime's sessions, in this process and in those that are
forked from it. Rows, arenas, lanes, workers and all that is above run as they are. What such a graph answers depends on
the source's length alone: `answer_length` tokens of `ANSWER_TOKEN`, then the end.

The times are those of the recipe multi30k (160 wide, 4 + 3 layers, vocabulary 4,000, int8, kernels avx512vnni) with
random weights on one core of a Zen 4, in microseconds: `encode` 114 for one source of 8 tokens, 2,423 for 32; `decode`
61 for one row, 141 for 8, 506 for 32; `decode_steps`, four steps, 238, 569, 2,212.
"""

import ctypes
import math
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dragoman.server.bundle.manifest import Manifest
from dragoman.server.bundle.reader import Bundle
from dragoman.server.execution import sessions

__all__ = [
    "ANSWER_TOKEN",
    "TOKEN_LOG_PROBABILITY",
    "SleepingSession",
    "answer_length",
    "install",
    "run_seconds",
]

ANSWER_TOKEN: Final = 5
TOKEN_LOG_PROBABILITY: Final = math.log(0.9)
_SHORTEST_ANSWER, _NUM_LENGTHS = 10, 6
_SECONDS: Final = {  # of a run, and of each token (`encode`) or row in it
    "encode": (40e-6, 10e-6),
    "decode": (46e-6, 14.4e-6),
    "decode_steps": (180e-6, 50e-6),
    "align": (40e-6, 10e-6),
}
_PR_SET_TIMERSLACK: Final = 29
_TIMER_SLACK_NS: Final = 1_000


def answer_length(num_source_tokens: int) -> int:
    """Tokens of the answer to a source, without its end: 10 to 15."""
    return _SHORTEST_ANSWER + num_source_tokens % _NUM_LENGTHS


def run_seconds(graph: str, size: int) -> float:
    """How long a run of `graph` takes; `size` is its number of tokens (`encode`, padding included) or rows."""
    fixed_s, each_s = _SECONDS[graph]
    return fixed_s + size * each_s


def install() -> None:
    """Have `Backend.load` load sleeping graphs from now on."""
    sessions.load_sessions = _load_sessions
    be_punctual()


def be_punctual() -> None:
    """Have sleeps of this process end in time: by default Linux ends them up to 50 us late, as long as a step takes.

    Threads and forked processes inherit it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS, 0, 0, 0)


def _load_sessions(bundle: Bundle, **_: object) -> dict[str, "SleepingSession"]:
    return {name: SleepingSession(name, bundle.manifest) for name in bundle.manifest.graphs}


class _Binding:
    """An `IOBinding` that keeps what a sleeping graph reads and writes, as arrays over the memory that is bound."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}

    def bind_input(
        self,
        name: str,
        _device: str,
        _device_id: int,
        dtype: np.dtype[Any],
        shape: Sequence[int],
        address: int,
    ) -> None:
        if "key_" in name or "value_" in name:  # caches: a sleeping graph leaves them as they are
            return
        memory = (ctypes.c_char * (math.prod(shape) * np.dtype(dtype).itemsize)).from_address(address)
        self.arrays[name] = np.frombuffer(memoryview(memory).cast("B"), dtype).reshape(shape)

    bind_output = bind_input


class SleepingSession:
    """An `InferenceSession`, as far as rows use one."""

    def __init__(self, name: str, manifest: Manifest) -> None:
        self._name = name
        self._graph = manifest.graphs[name]
        self._dims = manifest.dimensions
        self._end = manifest.special_tokens.end
        self._slowness = float(manifest.provenance.get("slowness", 1.0))
        room = manifest.limits.max_context_tokens + 8
        # By remainder of the source's length and by position: one look-up gives the tokens of all rows.
        self._tokens = np.full((_NUM_LENGTHS, room), ANSWER_TOKEN, np.int64)
        for remainder in range(_NUM_LENGTHS):
            self._tokens[remainder, _SHORTEST_ANSWER + remainder :] = self._end

    def get_inputs(self) -> list[SimpleNamespace]:
        """Names and types."""
        return [SimpleNamespace(name=name, type="tensor(float)") for name in self._graph.inputs]

    def io_binding(self) -> _Binding:
        """A binding of nothing yet."""
        return _Binding()

    def run_with_iobinding(self, binding: _Binding, _options: object = None) -> None:
        """One step, or several, of the rows that are bound."""
        arrays = binding.arrays
        positions, remainders = arrays["lengths"], arrays["source_lengths"] % _NUM_LENGTHS
        time.sleep(self._slowness * run_seconds(self._name, len(positions)))
        if self._name == "decode":
            self._choose(arrays, self._tokens[remainders, positions])
            return
        step = 0
        while (chosen := arrays.get(f"step_{step}_token_ids")) is not None:
            chosen[:] = self._tokens[remainders, positions + step]
            arrays[f"step_{step}_log_probabilities"][:] = TOKEN_LOG_PROBABILITY
            step += 1

    def run(
        self, _names: object, inputs: Mapping[str, NDArray[Any]], _options: object = None
    ) -> list[NDArray[np.float32]]:
        """`encode` and `align`: arrays of the shapes that the real graphs give."""
        source_ids = inputs["source_ids"]
        time.sleep(self._slowness * run_seconds(self._name, source_ids.size))
        if self._name == "align":
            num_targets = inputs["target_ids"].shape[1]
            attention = np.full((*inputs["target_ids"].shape, source_ids.shape[1]), 1.0, np.float32)
            return [attention / source_ids.shape[1] if num_targets else attention]
        num_sources, num_tokens = source_ids.shape
        heads, size = self._dims.num_kv_heads, self._dims.head_size
        whole, last = (num_sources, heads, num_tokens, size), (num_sources, 1, heads * size)
        return [
            np.zeros(last if name.startswith("last_") else whole, np.float32) for name in self._graph.outputs
        ]

    def _choose(self, arrays: Mapping[str, NDArray[Any]], chosen: NDArray[np.int64]) -> None:
        best, token_ids = arrays["best"], arrays["best_token_ids"]
        token_ids[:, 0], best[:, 0] = chosen, TOKEN_LOG_PROBABILITY
        others = math.log((1 - math.exp(TOKEN_LOG_PROBABILITY)) / (self._dims.vocabulary_size - 1))
        if (
            best.shape[1] > 1
        ):  # of a search: behind the best the tokens of the highest ids, none of which is chosen
            token_ids[:, 1:] = self._dims.vocabulary_size - np.arange(1, best.shape[1])
            best[:, 1:] = others
        if arrays["needs_all"][0]:
            log_probabilities = arrays["log_probabilities"]
            log_probabilities[:] = others
            log_probabilities[np.arange(len(chosen)), chosen] = TOKEN_LOG_PROBABILITY
