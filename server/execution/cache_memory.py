"""The memory of the rows' keys and values: what the rest of the server knows of it, wherever it lies.

Memory is fixed at start: for each decoder layer two arrays (rows, kv heads, capacity, head size) per kind of
attention, in the graphs' own precision. Graphs are bound to the memory of the first B rows, without a copy, and the
operators append to them in place.

`CacheMemory` is the protocol. `host_memory` holds the caches in numpy's memory, `device_memory` on an accelerator.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.graph_names import LAST, OWN, SOURCE, CacheKind, caches_by_kind, output_cache
from dragoman.server.bundle.manifest import GraphRecord, Manifest
from dragoman.server.execution.prefix_cache import PrefixCache

__all__ = ["Buffer", "CacheLayout", "CacheMemory", "GraphInputs", "bind_caches", "row_bytes"]

GraphInputs = Mapping[str, NDArray[np.int64] | NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Buffer:
    """An array with rows first, wherever it lies.

    Attributes:
        device: ONNX Runtime's device type, "cpu" or "cuda".
        address: of its first byte, in that device's memory.
        shape: (rows, ...).
        dtype: of an element.
    """

    device: str
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, array: NDArray[Any]) -> "Buffer":
        """Numpy's memory."""
        return cls("cpu", array.ctypes.data, array.shape, array.dtype)

    def rows(self, first: int, last: int) -> tuple[str, int, np.dtype[Any], tuple[int, ...], int]:
        """Rows first .. last - 1 as `IOBinding.bind_input` and `bind_output` take them."""
        row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        return self.device, 0, self.dtype, (last - first, *self.shape[1:]), self.address + first * row_bytes


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The caches that a bundle's decode step takes.

    Attributes:
        kinds: of each cache, by the name of the step's input.
        names: of the caches, by their kind.
        shapes: of one row, by the name of the cache.
    """

    kinds: Mapping[str, CacheKind]
    names: Mapping[CacheKind, Sequence[str]]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The layout that a manifest's dimensions and limits give."""
        dims, limits = manifest.dimensions, manifest.limits
        shapes: dict[CacheKind, tuple[int, ...]] = {
            OWN: (dims.num_kv_heads, limits.max_context_tokens, dims.head_size),
            SOURCE: (dims.num_kv_heads, limits.max_source_tokens, dims.head_size),
            LAST: (1, dims.num_kv_heads * dims.head_size),
        }
        by_kind = caches_by_kind(manifest.graphs["decode"].inputs)
        kinds = {name: kind for kind, names in by_kind.items() for name in names}
        return cls(kinds, by_kind, {name: shapes[kind] for name, kind in kinds.items()})


def row_bytes(manifest: Manifest, dtype: np.dtype[np.floating]) -> int:
    """Bytes of one row's keys and values in precision `dtype`."""
    return dtype.itemsize * sum(math.prod(shape) for shape in CacheLayout.of(manifest).shapes.values())


class CacheMemory(Protocol):
    """The caches of all rows.

    Attributes:
        layout: of the caches.
        dtype: of the caches.
    """

    layout: CacheLayout
    dtype: np.dtype[np.floating]

    def buffer(self, name: str) -> Buffer:
        """Where the cache `name` of all rows lies."""

    def run(
        self, session: ort.InferenceSession, graph: GraphRecord, inputs: GraphInputs
    ) -> Mapping[str, Any]:
        """Run a graph that computes keys and values. Returns its outputs by name, in the memory of the caches."""

    def store(
        self,
        rows: Sequence[int],
        num_tokens: Sequence[int],
        outputs: Mapping[str, Any],
        positions: Sequence[int],
    ) -> None:
        """Copy keys and values that `run` computed into rows.

        Args:
            rows: one for each input.
            num_tokens: of each input, without its padding.
            outputs: by cache name (K, kv heads, tokens, head size), or (K, 1, width) of a source's last token.
            positions: of each input among the K that the graph ran for.
        """

    def copy(
        self, kind: CacheKind, sources: Sequence[int], targets: Sequence[int], num_tokens: Sequence[int]
    ) -> None:
        """Copy the first `num_tokens` of the caches of `kind` from each source row to its target; no row is both."""

    def load_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> int:
        """Fill a row with the longest prefix of `token_ids` that `cache` has. Returns its number of tokens."""

    def store_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> None:
        """Give `cache` the block that ends with `token_ids`, all of which the row holds."""


def bind_caches(
    binding: ort.IOBinding, graph: GraphRecord, memory: CacheMemory, first: int, last: int
) -> None:
    """Bind rows first .. last - 1 of the caches to a graph's inputs and outputs of their names."""
    for name in graph.inputs:
        if name in memory.layout.kinds:
            binding.bind_input(name, *memory.buffer(name).rows(first, last))
    for name in graph.outputs:
        # new_key_0 and step_2_new_key_0 are key_0: the same memory, so the operator appends in place.
        if cache := output_cache(name):
            binding.bind_output(name, *memory.buffer(cache).rows(first, last))
