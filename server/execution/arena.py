"""Preallocated keys and values of every row a lane can run, and the step's small inputs beside them.

Memory is fixed at start: for each decoder layer two arrays (rows, kv heads, capacity, head size) per kind of
attention, in the graphs' own precision. Graphs are bound to the memory of the first B rows, without a copy, and the
operators append to them in place.

`Arena` is what the rest of the server knows; `HostArena` holds it all in numpy's memory,
`dragoman.server.execution.device_arena` the caches on an accelerator.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.graph_names import LAST, OWN, SOURCE, caches_by_kind, output_cache
from dragoman.server.bundle.manifest import GraphRecord, Manifest
from dragoman.server.execution.kernels import Arrays, copy_rows
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS, PrefixCache

__all__ = ["SMALL_INPUTS", "Arena", "Buffer", "HostArena", "row_bytes"]

SMALL_INPUTS = ("token_ids", "lengths", "source_lengths")
"""Of a step, beside its caches: attributes of every arena."""


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


def row_bytes(manifest: Manifest, dtype: np.dtype[np.floating]) -> int:
    """Bytes of one row's keys and values in precision `dtype`."""
    return dtype.itemsize * sum(math.prod(shape) for _, shape in _caches(manifest).values())


def _caches(manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Kind and shape of each cache of a row, by the name of the step's input."""
    dims, limits = manifest.dimensions, manifest.limits
    shapes = {
        OWN: (dims.num_kv_heads, limits.max_context_tokens, dims.head_size),
        SOURCE: (dims.num_kv_heads, limits.max_source_tokens, dims.head_size),
        LAST: (1, dims.num_kv_heads * dims.head_size),
    }
    by_kind = caches_by_kind(manifest.graphs["decode"].inputs)
    return {name: (kind, shapes[kind]) for kind, names in by_kind.items() for name in names}


class Arena(ABC):
    """The state of `num_rows` rows.

    Attributes:
        token_ids: (rows,) int64, the token each row feeds into the next step.
        lengths: (rows,) int32, tokens already in the row's own cache.
        source_lengths: (rows,) int32, tokens of the row's source; 1 where there is none, so that a row that was
            never started is harmless.
        dtype: of the caches.
    """

    def __init__(self, manifest: Manifest, num_rows: int, dtype: np.dtype[np.floating]) -> None:
        self.num_rows = num_rows
        self.dtype = dtype
        self.token_ids: NDArray[np.int64] = np.zeros(num_rows, np.int64)
        self.lengths: NDArray[np.int32] = np.zeros(num_rows, np.int32)
        self.source_lengths: NDArray[np.int32] = np.ones(num_rows, np.int32)
        self._kinds: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}  # by kind
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, (kind, shape) in _caches(manifest).items():
            self._kinds[name] = kind
            self._names.setdefault(kind, []).append(name)
            self._shapes[name] = (num_rows, *shape)

    def bind_step(self, binding: ort.IOBinding, graph: GraphRecord, num_rows: int) -> None:
        """Bind the first `num_rows` rows of all that a step takes, caches as outputs too."""
        for name in SMALL_INPUTS:
            if name in graph.inputs:
                binding.bind_input(name, *self._buffer(name).rows(0, num_rows))
        self.bind_caches(binding, graph, 0, num_rows)

    def bind_caches(self, binding: ort.IOBinding, graph: GraphRecord, first: int, last: int) -> None:
        """Bind rows first .. last - 1 of the caches to a graph's inputs and outputs of their names."""
        for name in graph.inputs:
            if name in self._kinds:
                binding.bind_input(name, *self._buffer(name).rows(first, last))
        for name in graph.outputs:
            # new_key_0 and step_2_new_key_0 are key_0: the same memory, so the operator appends in place.
            if cache := output_cache(name):
                binding.bind_output(name, *self._buffer(cache).rows(first, last))

    @abstractmethod
    def _buffer(self, name: str) -> Buffer:
        """Where the step's input `name` lies, all rows of it."""

    @abstractmethod
    def keep(
        self,
        rows: Sequence[int],
        num_tokens: Sequence[int],
        computed: Mapping[str, Any],
        places: Sequence[int],
    ) -> None:
        """Copy what a graph computed for inputs to their rows.

        Args:
            rows: one an input.
            num_tokens: of each input, without its padding.
            computed: by cache name (K, kv heads, tokens, head size), or (K, 1, width) of a source's last token.
            places: of each input among the K that the graph ran for.
        """

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the whole state of rows `sources`, one for each target, to rows `targets`; none is both."""
        for array in (self.token_ids, self.lengths, self.source_lengths):
            array[list(targets)] = array[list(sources)]
        for kind in self._names:
            self._copy_caches(kind, sources, targets)

    def fork(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows' own caches to rows that have the same source's keys and values already; none is both."""
        self.lengths[list(targets)] = self.lengths[list(sources)]
        self._copy_caches(OWN, sources, targets)

    @abstractmethod
    def _copy_caches(self, kind: str, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what counts of rows' caches of a kind to other rows, which have their lengths already."""

    def _num_tokens(self, kind: str, rows: Sequence[int]) -> list[int]:
        """How many tokens count of each of these rows' caches of a kind."""
        if kind == LAST:
            return [1] * len(rows)
        lengths = self.lengths if kind == OWN else self.source_lengths
        counts: list[int] = lengths[list(rows)].tolist()
        return counts

    @abstractmethod
    def load_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> int:
        """Fill a row with the longest prefix of `token_ids` that `cache` has; returns its number of tokens."""

    @abstractmethod
    def store_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> None:
        """Hand the block that ends with `token_ids`, all of which the row holds, to `cache`."""


class HostArena(Arena):
    """All in numpy's memory, which ONNX Runtime's CPU provider shares.

    Attributes:
        caches: by graph input name, in the graphs' precision, rows first.
    """

    def __init__(self, manifest: Manifest, num_rows: int, dtype: np.dtype[np.floating]) -> None:
        super().__init__(manifest, num_rows, dtype)
        self.caches: dict[str, NDArray[np.floating]] = {}
        # By kind: what happens to a row happens to all of its caches in one call, head by head.
        self._arrays: dict[str, Arrays] = {}
        for kind, names in self._names.items():
            stack = np.zeros((len(names), *self._shapes[names[0]]), dtype)
            self.caches |= zip(names, stack, strict=True)
            self._arrays[kind] = Arrays.of(stack, stack[0])

    def _buffer(self, name: str) -> Buffer:
        return Buffer.of(self.caches[name] if name in self.caches else getattr(self, name))

    def keep(
        self,
        rows: Sequence[int],
        num_tokens: Sequence[int],
        computed: Mapping[str, Any],
        places: Sequence[int],
    ) -> None:
        """As `Arena.keep`, from numpy arrays; padding is left out."""
        for kind in dict.fromkeys(self._kinds[name] for name in computed):
            outputs = [np.ascontiguousarray(computed[name]) for name in self._names[kind]]
            self._check_fits(kind, outputs, max(places) + 1, max(num_tokens))
            sources = Arrays.of(outputs, outputs[0])
            counts = [1] * len(rows) if kind == LAST else num_tokens  # of a source's last token there is one
            self._copy_rows(kind, rows, sources, places, counts)

    def _check_fits(self, kind: str, outputs: list[NDArray[Any]], num_inputs: int, num_tokens: int) -> None:
        """Copies go by addresses: a graph that gives other than the manifest says must not get there."""
        shape, room = outputs[0].shape, self._shapes[self._names[kind][0]][1:]
        alike = all((output.shape, output.dtype) == (shape, self.dtype) for output in outputs)
        as_in_a_row = (len(shape), shape[1:2], shape[-1:]) == (1 + len(room), room[:1], room[-1:])
        long_enough = (
            as_in_a_row
            and num_inputs <= shape[0]
            and all(num_tokens <= size for size in (*shape[2:-1], *room[1:-1]))
        )
        if not (alike and long_enough):
            given = ", ".join(f"{output.dtype} {output.shape}" for output in outputs)
            raise ValueError(
                f"a graph gives {given} for {num_inputs} inputs of {num_tokens} tokens; "
                f"a row has room for {self.dtype} {room}"
            )

    def _copy_caches(self, kind: str, sources: Sequence[int], targets: Sequence[int]) -> None:
        """As `Arena._copy_caches`; only the tokens there are get copied."""
        self._copy_rows(kind, targets, self._arrays[kind], sources, self._num_tokens(kind, sources))

    def _copy_rows(
        self,
        kind: str,
        rows: Sequence[int],
        sources: Arrays,
        source_rows: Sequence[int],
        num_tokens: Sequence[int],
    ) -> None:
        """To `rows` of a kind of caches, of each as many tokens as `num_tokens` says."""
        token_bytes = self._shapes[self._names[kind][0]][-1] * self.dtype.itemsize
        num_bytes = [count * token_bytes for count in num_tokens]
        copy_rows(self._arrays[kind], sources, rows, source_rows, num_bytes)

    def load_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> int:
        """As `Arena.load_prefix`."""
        with cache.known(token_ids) as blocks:
            for position, block in enumerate(blocks):
                for stored, part in zip(block, self._block(row, position), strict=True):
                    part[:] = stored
        return len(blocks) * BLOCK_TOKENS

    def store_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> None:
        """As `Arena.store_prefix`."""
        if cache.max_blocks:
            cache.store(token_ids, self._block(row, len(token_ids) // BLOCK_TOKENS - 1))

    def _block(self, row: int, position: int) -> list[NDArray[np.floating]]:
        """Views of block number `position` of a row, one of each cache."""
        tokens = slice(position * BLOCK_TOKENS, (position + 1) * BLOCK_TOKENS)
        return [array[row, :, tokens] for array in self.caches.values()]
