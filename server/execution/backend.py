"""ONNX Runtime under the engine: a bundle's graphs, loaded once and shared by all lanes."""

import functools
from typing import Self

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

from dragoman.common.memory import readable_bytes
from dragoman.server.bundle.graph_names import OWN, cache_names
from dragoman.server.bundle.reader import Bundle, one_line
from dragoman.server.decoding.suppression import Vocabulary
from dragoman.server.errors import ResourceUnavailable
from dragoman.server.execution import sessions as onnx_sessions
from dragoman.server.execution.cache_memory import row_bytes
from dragoman.server.execution.device_memory import DEVICE_TURN, DeviceMemory
from dragoman.server.execution.device_steps import DeviceStepRunner
from dragoman.server.execution.host_memory import HostMemory
from dragoman.server.execution.kernels import NO_KERNELS, select_kernels
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS, PrefixCache
from dragoman.server.execution.rows import Rows
from dragoman.server.execution.slots import Slots
from dragoman.server.execution.steps import HostStepRunner, MultiStepRunner

__all__ = ["Backend"]

_ORT_ERRORS = (onnxruntime_pybind11_state.Fail, onnxruntime_pybind11_state.RuntimeException)
_DTYPES: dict[str, np.dtype[np.floating]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}


class Backend:
    """A bundle's graphs, loaded. Sessions may be run from several threads at once.

    Attributes:
        bundle: where the graphs come from.
        sessions: by graph name, those that are run.
        device: ONNX Runtime's type of the device that holds the caches; None: numpy's memory.
        kernels: the sessions' kernels for operators of ours; `NO_KERNELS`: ONNX Runtime's operators alone.
        cache_dtype: of keys and values, as the graphs take them.
        slowest_run_s: the slowest run of a graph took when they were tried at their limits; 0: they were not.
        prefix_cache: what all rows share of prompts; keeps nothing unless `with_prefix_cache` made this backend.
    """

    def __init__(
        self,
        bundle: Bundle,
        sessions: dict[str, ort.InferenceSession],
        *,
        device: str | None = None,
        kernels: str = NO_KERNELS,
        prefix_cache_bytes: int = 0,
    ) -> None:
        self.bundle = bundle
        self.kernels = kernels
        self.sessions = sessions
        self.device = device
        self.slowest_run_s = 0.0
        [self.cache_dtype] = (
            _DTYPES[each.type]
            for each in sessions["decode"].get_inputs()
            if each.name == cache_names(1, OWN)[0]
        )
        dims = bundle.manifest.dimensions
        self.prefix_cache = PrefixCache(
            prefix_cache_bytes if self.reuses_prefixes else 0,
            (2 * dims.num_decoder_layers, dims.num_kv_heads, BLOCK_TOKENS, dims.head_size),
            self.cache_dtype,
        )

    @property
    def reuses_prefixes(self) -> bool:
        """Whether the bundle can go on from a cached prefix; those without `extend` cannot."""
        return "extend" in self.sessions

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The texts that tokens add, laid out when they are first asked for: 2 us a token.

        Raises:
            UnknownDecoderError: the tokenizer joins tokens in a way that is not known here.
        """
        return Vocabulary.of(self.bundle.tokenizer)

    @classmethod
    def load(cls, bundle: Bundle, *, provider: str, num_threads: int, kernels: str = "auto") -> Self:
        """Load every graph for `provider`, with `num_threads` threads inside each operator.

        `kernels` are those for the operators of ours on a CPU, as `dragoman.server.execution.kernels.select_kernels`
        takes them.

        Raises:
            ProviderUnavailable: ONNX Runtime does not offer the provider or cannot start it here, the bundle is not
                made for it, or the kernels asked for cannot be had.
            BundleError: a graph cannot be loaded.
        """
        device = None if provider == "cpu" else provider
        chosen = select_kernels(kernels) if device is None else NO_KERNELS
        sessions = onnx_sessions.load_sessions(
            bundle, provider=provider, num_threads=num_threads, on_device=device is not None, kernels=chosen
        )
        return cls(bundle, sessions, device=device, kernels=chosen)

    def with_prefix_cache(self, max_bytes: int) -> "Backend":
        """The same sessions with a fresh prefix cache of at most `max_bytes`."""
        backend = Backend(
            self.bundle,
            self.sessions,
            device=self.device,
            kernels=self.kernels,
            prefix_cache_bytes=max_bytes,
        )
        backend.slowest_run_s = self.slowest_run_s
        return backend

    def rows(self, num_rows: int) -> Rows:
        """Fresh memory of `num_rows` rows bound to these graphs, for the use of one thread at a time.

        Raises:
            ResourceUnavailable: there is no memory for it.
        """
        manifest = self.bundle.manifest
        try:
            return (
                self._host_rows(num_rows) if self.device is None else self._device_rows(num_rows, self.device)
            )
        except (MemoryError, ValueError, RuntimeError, *_ORT_ERRORS) as error:
            size = readable_bytes(num_rows * row_bytes(manifest, self.cache_dtype))
            raise ResourceUnavailable(
                f"{self.bundle.path}: no memory on the {self.device or 'cpu'} for {num_rows:,} rows of keys and values "
                f"({size}): {one_line(error)}; lower engine.slots_per_lane"
            ) from error

    def _host_rows(self, num_rows: int) -> Rows:
        manifest, sessions, slots = self.bundle.manifest, self.sessions, Slots(num_rows)
        memory = HostMemory(manifest, num_rows, self.cache_dtype)
        step = HostStepRunner(manifest, sessions["decode"], slots, memory)
        multi_step = None
        if "decode_steps" in sessions:
            multi_step = MultiStepRunner(manifest, sessions["decode_steps"], slots, memory)
        return Rows(
            manifest,
            sessions,
            slots=slots,
            memory=memory,
            step=step,
            multi_step=multi_step,
            prefix_cache=self.prefix_cache,
        )

    def _device_rows(self, num_rows: int, device: str) -> Rows:
        manifest, sessions, slots = self.bundle.manifest, self.sessions, Slots(num_rows)
        with DEVICE_TURN:
            memory = DeviceMemory(manifest, num_rows, self.cache_dtype, device, sessions)
            step = DeviceStepRunner(manifest, sessions["decode"], slots, memory)
        return Rows(
            manifest,
            sessions,
            slots=slots,
            memory=memory,
            step=step,
            multi_step=None,  # `decode_steps` is for CPUs
            prefix_cache=self.prefix_cache,
            turn=DEVICE_TURN,
            max_padding_share=1.0,  # a run costs more than whatever it computes beside
            encodes_ahead=False,
        )
