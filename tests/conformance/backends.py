"""The committed bundles, loaded as they are served, and with their caches where a device would have them."""

from pathlib import Path

from dragoman.server.bundle.reader import Bundle
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.kernels import select_kernels
from dragoman.server.execution.sessions import load_sessions

FIXTURES = Path(__file__).parents[1] / "fixtures"
ON_DEVICE = " on a device"


def load(name: str) -> Backend:
    """The bundle `name` below the fixtures.

    With `ON_DEVICE` behind the name its caches are OrtValues bound by their address and moved by graphs, as for CUDA,
    but on ONNX Runtime's device "cpu".
    """
    bundle = Bundle.read(FIXTURES / name.removesuffix(ON_DEVICE))
    on_device = name.endswith(ON_DEVICE)
    kernels = select_kernels("auto")
    sessions = load_sessions(bundle, provider="cpu", num_threads=1, on_device=on_device, kernels=kernels)
    return Backend(bundle, sessions, device="cpu" if on_device else None, kernels=kernels)
