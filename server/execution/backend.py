"""ONNX Runtime under the engine: a bundle's sessions, shared by all lanes, for the execution provider asked for."""

import contextlib
import functools
import os
from typing import Self

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

from dragoman.common.memory import readable_bytes
from dragoman.server.bundle.graph_interfaces import check_interface
from dragoman.server.bundle.graph_names import COPYING_GRAPHS, OWN, cache_names
from dragoman.server.bundle.reader import Bundle, one_line
from dragoman.server.decoding.suppression import Vocabulary
from dragoman.server.errors import BundleError, ProviderUnavailable, ResourceUnavailable
from dragoman.server.execution.arena import HostArena, row_bytes
from dragoman.server.execution.device_arena import DEVICE_TURN, DeviceArena
from dragoman.server.execution.device_rows import CAPTURED_GRAPH, DeviceRows
from dragoman.server.execution.kernels import NO_KERNELS, register_kernels, select_kernels
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS, PrefixCache
from dragoman.server.execution.rows import Rows

__all__ = ["Backend", "load_sessions"]

_ORT_ERRORS = (onnxruntime_pybind11_state.Fail, onnxruntime_pybind11_state.RuntimeException)
_NOWHERE = os.devnull
"""No folder, so no file is found in it."""
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
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
        """What each token adds to a text, laid out when it is first asked for: 2 us a token.

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
        sessions = load_sessions(
            bundle, provider=provider, num_threads=num_threads, on_device=device is not None, kernels=chosen
        )
        return cls(bundle, sessions, device=device, kernels=chosen)

    def with_prefix_cache(self, max_bytes: int) -> "Backend":
        """The same sessions with a fresh prefix cache of at most `max_bytes`."""
        return Backend(
            self.bundle,
            self.sessions,
            device=self.device,
            kernels=self.kernels,
            prefix_cache_bytes=max_bytes,
        )

    def rows(self, num_rows: int) -> Rows:
        """A fresh arena of `num_rows` rows bound to these graphs, for the use of one thread at a time.

        Raises:
            ResourceUnavailable: there is no memory for it.
        """
        manifest = self.bundle.manifest
        try:
            if self.device is None:
                host_arena = HostArena(manifest, num_rows, self.cache_dtype)
                return Rows(manifest, self.sessions, host_arena, self.prefix_cache)
            with DEVICE_TURN:
                arena = DeviceArena(manifest, num_rows, self.cache_dtype, self.device, self.sessions)
            return DeviceRows(manifest, self.sessions, arena, self.prefix_cache)
        except (MemoryError, ValueError, RuntimeError, *_ORT_ERRORS) as error:
            size = readable_bytes(num_rows * row_bytes(manifest, self.cache_dtype))
            raise ResourceUnavailable(
                f"{self.bundle.path}: no memory on the {self.device or 'cpu'} for {num_rows:,} rows of keys and values "
                f"({size}): {one_line(error)}; lower engine.slots_per_lane"
            ) from error


def load_sessions(
    bundle: Bundle, *, provider: str, num_threads: int, on_device: bool, kernels: str = NO_KERNELS
) -> dict[str, ort.InferenceSession]:
    """A session for each graph that is run; `on_device` where the caches will not be in numpy's memory.

    `kernels` is what `select_kernels` returned.

    Raises:
        ProviderUnavailable: see `Backend.load`.
        BundleError: a graph cannot be loaded.
    """
    wanted = _PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        offered = ", ".join(ort.get_available_providers())
        raise ProviderUnavailable(f"provider {provider!r} needs {wanted}; this onnxruntime offers {offered}")
    if on_device and bundle.manifest.precision != "fp16":
        # ONNX Runtime would quietly run attention, or all products, on the CPU and copy caches to and fro.
        raise ProviderUnavailable(
            f"provider {provider!r} runs fp16 bundles; {bundle.path} is {bundle.manifest.precision}: "
            "export it with --precision fp16"
        )
    if on_device and COPYING_GRAPHS[0] not in bundle.manifest.graphs:
        raise ProviderUnavailable(
            f"provider {provider!r} copies caches by graphs that {bundle.path} does not have: export it again"
        )
    if provider == "cuda":
        ort.preload_dlls()  # CUDA from pip's wheels lies where the system's loader does not look
    options = _session_options(provider, num_threads)
    if kernels != NO_KERNELS:
        register_kernels(options)
    sessions = {}
    for name in _graphs_run(bundle, on_device=on_device):
        path = bundle.graph_path(name)
        try:
            captures = {"enable_cuda_graph": "1"} if (provider, name) == ("cuda", CAPTURED_GRAPH) else {}
            with DEVICE_TURN if on_device else contextlib.nullcontext():
                sessions[name] = ort.InferenceSession(
                    bundle.graph_bytes(name), options, providers=[(wanted, captures)]
                )
        except BundleError:
            raise
        except Exception as error:  # onnxruntime raises bare exceptions of its own
            raise BundleError(f"{path} cannot be loaded: {_reason(error)}") from error
        # Where CUDA cannot start, ONNX Runtime says so in its log and goes on with the CPU.
        if wanted not in sessions[name].get_providers():
            raise ProviderUnavailable(f"provider {provider!r}: {wanted} could not be started here")
        check_interface(bundle, name, sessions[name])
    return sessions


def _reason(error: Exception) -> str:
    if _NOWHERE in str(error) or "external data" in str(error).lower():
        return "weights lie in another file (external data); a bundle's graphs hold all of their weights"
    return one_line(error)


def _graphs_run(bundle: Bundle, *, on_device: bool) -> list[str]:
    """All of a bundle's graphs but `prefill` where `extend` does its work, and those that copy tokens on a device."""
    graphs = bundle.manifest.graphs
    left_out = {"prefill"} if "extend" in graphs else set()
    if not on_device:
        left_out.update(COPYING_GRAPHS)
    return [name for name in graphs if name not in left_out]


def _session_options(provider: str, num_threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A lane that waits for requests must not burn the core that another lane computes on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Only bytes that were hashed are loaded: no weights from files beside a graph, which ONNX Runtime would look for
    # in the process's own folder.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    if provider == "cpu":
        # The fused kernel takes four times as long as Add and LayerNormalization on CPUs.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    return options
