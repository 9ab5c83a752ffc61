"""Keys and values in numpy's memory, which ONNX Runtime's CPU provider shares."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.graph_names import LAST, CacheKind
from dragoman.server.bundle.manifest import GraphRecord, Manifest
from dragoman.server.execution.cache_memory import Buffer, CacheLayout, GraphInputs
from dragoman.server.execution.kernels import Arrays, copy_rows
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS, PrefixCache

__all__ = ["HostMemory"]


class HostMemory:
    """A `CacheMemory` of numpy arrays.

    Attributes:
        layout: of the caches.
        dtype: of the caches.
        caches: by graph input name, in the graphs' precision, rows first.
    """

    def __init__(self, manifest: Manifest, num_rows: int, dtype: np.dtype[np.floating]) -> None:
        self.layout = CacheLayout.of(manifest)
        self.dtype = dtype
        self.caches: dict[str, NDArray[np.floating]] = {}
        # By kind: what happens to a row happens to all of its caches in one call, head by head.
        self._arrays: dict[CacheKind, Arrays] = {}
        for kind, names in self.layout.names.items():
            stack = np.zeros((len(names), num_rows, *self.layout.shapes[names[0]]), dtype)
            self.caches |= zip(names, stack, strict=True)
            self._arrays[kind] = Arrays.of(stack, stack[0])

    def buffer(self, name: str) -> Buffer:
        """As `CacheMemory.buffer`."""
        return Buffer.of(self.caches[name])

    def run(
        self, session: ort.InferenceSession, graph: GraphRecord, inputs: GraphInputs
    ) -> Mapping[str, Any]:
        """As `CacheMemory.run`: outputs are numpy arrays."""
        return dict(zip(graph.outputs, session.run(None, inputs), strict=True))

    def store(
        self,
        rows: Sequence[int],
        num_tokens: Sequence[int],
        outputs: Mapping[str, Any],
        positions: Sequence[int],
    ) -> None:
        """As `CacheMemory.store`; padding is left out.

        Raises:
            ValueError: the outputs do not fit into a row.
        """
        for kind in dict.fromkeys(self.layout.kinds[name] for name in outputs):
            arrays = [np.ascontiguousarray(outputs[name]) for name in self.layout.names[kind]]
            self._check_fits(kind, arrays, max(positions) + 1, max(num_tokens))
            counts = [1] * len(rows) if kind == LAST else num_tokens  # of a source's last token there is one
            self._copy_rows(kind, rows, Arrays.of(arrays, arrays[0]), positions, counts)

    def copy(
        self, kind: CacheKind, sources: Sequence[int], targets: Sequence[int], num_tokens: Sequence[int]
    ) -> None:
        """As `CacheMemory.copy`."""
        self._copy_rows(kind, targets, self._arrays[kind], sources, num_tokens)

    def load_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> int:
        """As `CacheMemory.load_prefix`."""
        with cache.known(token_ids) as blocks:
            for position, block in enumerate(blocks):
                for stored, part in zip(block, self._block(row, position), strict=True):
                    part[:] = stored
        return len(blocks) * BLOCK_TOKENS

    def store_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> None:
        """As `CacheMemory.store_prefix`."""
        if cache.max_blocks:
            cache.store(token_ids, self._block(row, len(token_ids) // BLOCK_TOKENS - 1))

    def _check_fits(
        self, kind: CacheKind, outputs: list[NDArray[Any]], num_inputs: int, num_tokens: int
    ) -> None:
        """Copies go by addresses: a graph that gives other than the manifest says must not get there."""
        shape, room = outputs[0].shape, self._room(kind)
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

    def _copy_rows(
        self,
        kind: CacheKind,
        rows: Sequence[int],
        sources: Arrays,
        source_rows: Sequence[int],
        num_tokens: Sequence[int],
    ) -> None:
        """Copy to `rows` of the caches of `kind` from `source_rows` of `sources`, of each `num_tokens` tokens."""
        token_bytes = self._room(kind)[-1] * self.dtype.itemsize
        num_bytes = [count * token_bytes for count in num_tokens]
        copy_rows(self._arrays[kind], sources, rows, source_rows, num_bytes)

    def _room(self, kind: CacheKind) -> tuple[int, ...]:
        """The shape of one row of a cache of `kind`."""
        return self.layout.shapes[self.layout.names[kind][0]]

    def _block(self, row: int, position: int) -> list[NDArray[np.floating]]:
        """Views of block number `position` of a row, one of each cache."""
        tokens = slice(position * BLOCK_TOKENS, (position + 1) * BLOCK_TOKENS)
        return [array[row, :, tokens] for array in self.caches.values()]
