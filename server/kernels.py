"""The library of kernels for the operators of domain "dragoman", beside this file where it could be built.

Graphs say what those operators compute in ONNX's own ones, so everything runs without the library too, only slower
(ADR 16).
"""

import ctypes
import functools
from pathlib import Path

import onnxruntime as ort

from server.errors import ProviderUnavailable

__all__ = ["KERNELS", "NO_KERNELS", "register_kernels", "select_kernels"]

NO_KERNELS = "none"
KERNELS = ("avx512vnni", "avx2", "portable")
"""What the library may have, best first."""

_LIBRARY = Path(__file__).with_name("libdragoman_kernels.so")


def select_kernels(wanted: str) -> str:
    """Which kernels sessions that are loaded from now on will have.

    Args:
        wanted: one of `KERNELS`, "auto" for the best that this processor has, or `NO_KERNELS`.

    Returns:
        The name of what is chosen; with "auto" `NO_KERNELS` where the library was not built.

    Raises:
        ProviderUnavailable: what is asked for by name cannot be had.
    """
    if wanted == NO_KERNELS:
        return NO_KERNELS
    if not _LIBRARY.exists():
        if wanted == "auto":
            return NO_KERNELS
        raise ProviderUnavailable(f"kernels {wanted!r}: this installation was built without a C++ compiler")
    chosen = _library().DragomanSelectKernels(None if wanted == "auto" else wanted.encode())
    if chosen is None:
        raise ProviderUnavailable(f"kernels {wanted!r}: this processor does not have the instructions")
    return str(chosen.decode())


def register_kernels(options: ort.SessionOptions) -> None:
    """Give sessions made with `options` the kernels that `select_kernels` chose last, if any."""
    options.register_custom_ops_library(str(_LIBRARY))


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_LIBRARY))
    library.DragomanSelectKernels.restype = ctypes.c_char_p
    library.DragomanSelectKernels.argtypes = [ctypes.c_char_p]
    return library
