"""ONNX Runtime's sessions of a bundle's graphs: execution provider, options, kernels."""

import contextlib
import os

import onnxruntime as ort

from dragoman.server.bundle.graph_interfaces import check_interface
from dragoman.server.bundle.graph_names import COPYING_GRAPHS
from dragoman.server.bundle.reader import Bundle, one_line
from dragoman.server.errors import BundleError, ProviderUnavailable
from dragoman.server.execution.device_memory import DEVICE_TURN
from dragoman.server.execution.device_steps import CAPTURED_GRAPH
from dragoman.server.execution.kernels import NO_KERNELS, register_kernels

__all__ = ["load_sessions"]

_NOWHERE = os.devnull
"""No folder, so no file is found in it."""
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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
    _check_can_run(bundle, provider, on_device=on_device)
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


def _check_can_run(bundle: Bundle, provider: str, *, on_device: bool) -> None:
    """Refuse a provider that this ONNX Runtime does not offer, or that `bundle` is not made for."""
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
