"""The library of kernels, beside this file where it could be built: operators of domain "dragoman", copies of caches.

Graphs say what those operators compute in ONNX's own ones, so everything runs without the library too, only slower
(ADR 16).
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import structlog
from numpy.typing import NDArray

from server.errors import ProviderUnavailable

__all__ = ["KERNELS", "NO_KERNELS", "address_of", "copy_pieces", "register_kernels", "select_kernels"]

NO_KERNELS = "none"
KERNELS = ("avx512vnni", "avx2", "portable")
"""What the library may have, best first."""

_log = structlog.get_logger(__name__)
_LIBRARY = Path(__file__).with_name("libdragoman_kernels.so")


def select_kernels(wanted: str) -> str:
    """Which kernels sessions that are loaded from now on will have.

    Args:
        wanted: one of `KERNELS`, "auto" for the best that this processor has, or `NO_KERNELS`.

    Returns:
        The name of what is chosen; with "auto" `NO_KERNELS` where the library was not built or cannot be loaded.

    Raises:
        ProviderUnavailable: what is asked for by name cannot be had.
    """
    if wanted == NO_KERNELS:
        return NO_KERNELS
    library = _library(_LIBRARY)
    if library is None:
        if wanted == "auto":
            return NO_KERNELS
        raise ProviderUnavailable(
            f"kernels {wanted!r}: this installation has none, or none that can be loaded"
        )
    chosen = library.DragomanSelectKernels(None if wanted == "auto" else wanted.encode())
    if chosen is None:
        raise ProviderUnavailable(f"kernels {wanted!r}: this processor does not have the instructions")
    return str(chosen.decode())


def register_kernels(options: ort.SessionOptions) -> None:
    """Give sessions made with `options` the kernels that `select_kernels` chose last, if any."""
    options.register_custom_ops_library(str(_LIBRARY))


def copy_pieces(targets: NDArray[np.int64], sources: NDArray[np.int64], sizes: NDArray[np.integer]) -> None:
    """Copy pieces of memory, none of which overlaps another; the interpreter's lock is free meanwhile.

    Args:
        targets: addresses, of any shape.
        sources: addresses.
        sizes: in bytes. Both are broadcast to the shape of `targets`.
    """
    table = np.empty((3, *targets.shape), np.int64)
    table[0], table[1], table[2] = targets, sources, sizes
    library = _library(_LIBRARY)
    if library is not None:
        library.DragomanCopyPieces(targets.size, address_of(table))
        return
    for piece in zip(*table.reshape(3, -1).tolist(), strict=True):
        ctypes.memmove(*piece)


def address_of(array: NDArray[Any]) -> int:
    """Of its first element; several times quicker than numpy's `array.ctypes`."""
    address: int = array.__array_interface__["data"][0]
    return address


@functools.cache
def _library(path: Path) -> ctypes.CDLL | None:
    if not path.exists():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # of another machine, or made for a newer C library
        _log.warning("kernels_not_loaded", path=str(path), reason=str(error))
        return None
    library.DragomanSelectKernels.restype = ctypes.c_char_p
    library.DragomanSelectKernels.argtypes = [ctypes.c_char_p]
    library.DragomanCopyPieces.restype = None
    library.DragomanCopyPieces.argtypes = [ctypes.c_size_t, ctypes.c_void_p]
    return library
