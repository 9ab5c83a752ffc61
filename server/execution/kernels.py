"""The library of kernels, beside this file where it could be built: operators of domain "dragoman", copies of caches.

Graphs say what those operators compute in ONNX's own ones, so everything runs without the library too, only slower
(ADR 16).
"""

import ctypes
import functools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import onnxruntime as ort
import structlog
from numpy.typing import NDArray

from dragoman.server.errors import ProviderUnavailable

__all__ = ["KERNELS", "NO_KERNELS", "Arrays", "address_of", "copy_rows", "register_kernels", "select_kernels"]

NO_KERNELS = "none"
KERNELS = ("avx512vnni", "avx2", "portable")
"""The kinds of kernels that the library may have, best first."""

_MAX_LOCKED_BYTES = 1 << 20
"""Copied in some 80 us."""

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
    library = _library(_LIBRARY, ctypes.CDLL)
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


@dataclass(frozen=True, slots=True)
class Arrays:
    """Where some arrays of one shape (rows, pieces, ...) lie.

    Attributes:
        addresses: of each one's first byte.
        num_pieces: of a row.
        piece_bytes: from the begin of a piece to the begin of the next.
    """

    addresses: "array[int]"
    num_pieces: int
    piece_bytes: int

    @classmethod
    def of(cls, arrays: Iterable[NDArray[Any]], like: NDArray[Any]) -> Self:
        """All are contiguous and have the shape of `like`."""
        return cls(array("q", map(address_of, arrays)), like.shape[1], like[0, 0].nbytes)


def copy_rows(
    targets: Arrays,
    sources: Arrays,
    target_rows: Sequence[int],
    source_rows: Sequence[int],
    num_bytes: Sequence[int],
) -> None:
    """Copy the first `num_bytes` of each piece of rows, array by array; none of the rows is both target and source.

    Much is copied without the interpreter's lock. Little is not: getting it back, a lane would wait for longer.
    """
    total = sum(num_bytes) * targets.num_pieces * len(targets.addresses)
    library = _library(_LIBRARY, ctypes.CDLL)
    if library is None:
        _copy_rows_slowly(targets, sources, list(zip(target_rows, source_rows, num_bytes, strict=True)))
        return
    if total < _MAX_LOCKED_BYTES:
        library = _library(_LIBRARY, ctypes.PyDLL) or library
    table = array(
        "q", [*target_rows, *source_rows, *num_bytes]
    )  # numpy needs three times as long for each of these
    library.DragomanCopyRows(
        len(targets.addresses),
        targets.addresses.buffer_info()[0],
        targets.piece_bytes,
        sources.addresses.buffer_info()[0],
        sources.piece_bytes,
        targets.num_pieces,
        len(target_rows),
        table.buffer_info()[0],
    )


def _copy_rows_slowly(targets: Arrays, sources: Arrays, copies: Sequence[tuple[int, int, int]]) -> None:
    for target, source in zip(targets.addresses.tolist(), sources.addresses.tolist(), strict=True):
        for target_row, source_row, size in copies:
            for piece in range(targets.num_pieces):
                ctypes.memmove(
                    target + (target_row * targets.num_pieces + piece) * targets.piece_bytes,
                    source + (source_row * sources.num_pieces + piece) * sources.piece_bytes,
                    size,
                )


def address_of(values: NDArray[Any]) -> int:
    """Returns the address of a contiguous, writable array that is not empty; in 0.4 us, where numpy takes 1.1."""
    return ctypes.addressof(ctypes.c_char.from_buffer(values.data))


@functools.cache
def _library(path: Path, kind: type[ctypes.CDLL]) -> ctypes.CDLL | None:
    """The library; as a `ctypes.PyDLL` its calls keep the interpreter's lock."""
    if not path.exists():
        return None
    try:
        library = kind(str(path))
    except OSError as error:  # of another machine, or made for a newer C library
        _log.warning("kernels_not_loaded", path=str(path), reason=str(error))
        return None
    library.DragomanSelectKernels.restype = ctypes.c_char_p
    library.DragomanSelectKernels.argtypes = [ctypes.c_char_p]
    library.DragomanCopyRows.restype = None
    library.DragomanCopyRows.argtypes = [
        *(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
        *(ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p),
    ]
    return library
