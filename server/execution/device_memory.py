"""Keys and values on an accelerator, which never leave it.

Rows cannot be indexed there from Python, so graphs of the bundle copy tokens between them, as
`dragoman.export.row_graphs` describes. Prefixes are kept in the host's memory, which is larger: a block crosses in a
fraction of the time to compute it.

With `device="cpu"` the same code runs on ONNX Runtime's CPU provider; that is how it is tested where no GPU is
(docs/adr/0013-halves-and-where-caches-live.md).
"""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.graph_names import LAST, CacheKind, computed_name
from dragoman.server.bundle.manifest import GraphRecord, Manifest
from dragoman.server.execution.cache_memory import Buffer, CacheLayout, GraphInputs
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS, PrefixCache

__all__ = ["DEVICE_TURN", "DeviceMemory"]

DEVICE_TURN = threading.RLock()
"""A thread holds it while it uses a device: CUDA fails the recording of a step when another thread uses the device."""


_STAGED_BLOCKS = 8
"""Blocks of a prefix that cross together: a run that copies them costs more than their copy."""


class _Table:
    """All caches of one kind, behind each other: (caches, rows, kv heads, capacity, head size).

    Attributes:
        memory: where they lie.
        names: of the caches, in their order.
    """

    def __init__(
        self, names: Sequence[str], shape: tuple[int, ...], dtype: np.dtype[np.floating], device: str
    ) -> None:
        self.names = tuple(names)
        self._shape = shape
        # Zeros, not whatever was there: a kernel may multiply what it masks by 0, and NaN stays NaN.
        self.memory = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), device, 0)
        num_caches, num_rows, num_heads, capacity, _ = shape
        self._row_places = num_heads * capacity
        self._begins = np.arange(num_caches, dtype=np.int64)[:, None] * (num_rows * self._row_places)
        self._heads = np.arange(num_heads, dtype=np.int64)[:, None] * capacity

    @property
    def flat(self) -> tuple[int, int]:
        """Its shape as the graphs take it: (places, head size)."""
        return math.prod(self._shape[:-1]), self._shape[-1]

    def begin_of(self, name: str) -> int:
        """Returns the begin of a cache in the memory, in elements."""
        return self.names.index(name) * math.prod(self._shape[1:])

    def tokens_shape(self, num_rows: int, num_tokens: int) -> tuple[int, ...]:
        """Returns the shape of so many tokens of so many rows of one cache."""
        return num_rows, self._shape[2], num_tokens, self._shape[-1]

    def bases(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Where these rows begin, those of the first cache first: (caches * rows, 1, 1)."""
        return (self._begins + np.array(rows, np.int64) * self._row_places).reshape(-1, 1, 1)

    def offsets(self, tokens: range) -> NDArray[np.int64]:
        """Returns the offsets of these tokens from the begin of their row: (kv heads, tokens)."""
        return self._heads + np.arange(tokens.start, tokens.stop)


class _Staging:
    """Memory here and on the device, through which blocks of one row cross.

    Attributes:
        addresses: where the part of each cache lies on the device.
    """

    def __init__(
        self, num_caches: int, shape: tuple[int, ...], dtype: np.dtype[np.floating], device: str
    ) -> None:
        """`shape` is that of a cache's part: (kv heads, tokens, head size)."""
        self._host = np.zeros((num_caches, *shape), dtype)
        self._device = ort.OrtValue.ortvalue_from_numpy(self._host.copy(), device, 0)
        cache_bytes = self._host.nbytes // num_caches
        self.addresses = [self._device.data_ptr() + index * cache_bytes for index in range(num_caches)]

    def upload(self, blocks: Sequence[NDArray[np.floating]]) -> None:
        """Bring blocks (caches, kv heads, tokens, head size), as many as there is room for, to the device."""
        for position, block in enumerate(blocks):
            self._host[:, :, position * BLOCK_TOKENS : (position + 1) * BLOCK_TOKENS] = block
        self._device.update_inplace(self._host)


class DeviceMemory:
    """A `CacheMemory` on `device`.

    Attributes:
        layout: of the caches.
        dtype: of the caches.
        device: ONNX Runtime's device type.
    """

    def __init__(
        self,
        manifest: Manifest,
        num_rows: int,
        dtype: np.dtype[np.floating],
        device: str,
        sessions: Mapping[str, ort.InferenceSession],
    ) -> None:
        self.layout = CacheLayout.of(manifest)
        self.dtype = dtype
        self.device = device
        self._num_rows = num_rows
        self._sessions = sessions
        num_heads, head_size = manifest.dimensions.num_kv_heads, manifest.dimensions.head_size
        self._tables: dict[CacheKind, _Table] = {}
        for kind, names in self.layout.names.items():
            capacity = math.prod(self.layout.shapes[names[0]]) // (num_heads * head_size)
            shape = (len(names), num_rows, num_heads, capacity, head_size)
            self._tables[kind] = _Table(names, shape, dtype, device)
        self._bindings: dict[tuple[str, str], ort.IOBinding] = {}
        self._stagings: dict[int, _Staging] = {}  # by blocks: two at most

    def cache(self, name: str) -> NDArray[np.floating]:
        """A copy of one cache, as the graphs name it, in numpy's memory: (rows, ...)."""
        table = self._tables[self.layout.kinds[name]]
        whole: NDArray[np.floating] = table.memory.numpy()
        cache: NDArray[np.floating] = whole[table.names.index(name)].reshape(self._shape(name))
        return cache

    def buffer(self, name: str) -> Buffer:
        """As `CacheMemory.buffer`."""
        table = self._tables[self.layout.kinds[name]]
        address = table.memory.data_ptr() + table.begin_of(name) * self.dtype.itemsize
        return Buffer(self.device, address, self._shape(name), self.dtype)

    def run(
        self, session: ort.InferenceSession, graph: GraphRecord, inputs: GraphInputs
    ) -> Mapping[str, Any]:
        """As `CacheMemory.run`: outputs are `OrtValue`s on the device."""
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in graph.outputs:
            binding.bind_output(name, self.device)
        session.run_with_iobinding(binding)
        return dict(zip(graph.outputs, binding.get_outputs(), strict=True))

    def store(
        self,
        rows: Sequence[int],
        num_tokens: Sequence[int],
        outputs: Mapping[str, ort.OrtValue],
        positions: Sequence[int],
    ) -> None:
        """As `CacheMemory.store`, for all inputs of a run; padding is copied too, to where no row looks."""
        assert list(positions) == list(range(len(rows))), "nothing is encoded ahead on a device"
        for kind in dict.fromkeys(self.layout.kinds[name] for name in outputs):
            addresses = [outputs[name].data_ptr() for name in self._tables[kind].names]
            self._fill(kind, rows, range(1 if kind == LAST else max(num_tokens)), addresses)

    def copy(
        self, kind: CacheKind, sources: Sequence[int], targets: Sequence[int], num_tokens: Sequence[int]
    ) -> None:
        """As `CacheMemory.copy`, from every row as many tokens as the longest has."""
        if longest := max(num_tokens):
            table, binding = self._tables[kind], self._binding("copy_tokens", kind)
            binding.bind_cpu_input("sources", table.bases(sources))
            binding.bind_cpu_input("targets", table.bases(targets))
            binding.bind_cpu_input("offsets", table.offsets(range(longest)))
            self._sessions["copy_tokens"].run_with_iobinding(binding)

    def load_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> int:
        """As `CacheMemory.load_prefix`, through memory of a fixed size, `_STAGED_BLOCKS` blocks at a time."""
        [kind] = self._tables  # a model that generates has no other
        with cache.known(token_ids) as blocks:
            position = 0
            while position < len(blocks):
                num_blocks = _STAGED_BLOCKS if len(blocks) - position >= _STAGED_BLOCKS else 1
                staging = self._staging(num_blocks)
                staging.upload(blocks[position : position + num_blocks])
                tokens = range(position * BLOCK_TOKENS, (position + num_blocks) * BLOCK_TOKENS)
                self._fill(kind, [row], tokens, staging.addresses)
                position += num_blocks
        return len(blocks) * BLOCK_TOKENS

    def store_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> None:
        """As `CacheMemory.store_prefix`."""
        if not cache.max_blocks:
            return
        [(kind, table)] = self._tables.items()
        binding = self._binding("read_tokens", kind)
        binding.bind_cpu_input("sources", table.bases([row]))
        binding.bind_cpu_input("offsets", table.offsets(range(len(token_ids) - BLOCK_TOKENS, len(token_ids))))
        self._sessions["read_tokens"].run_with_iobinding(binding)
        [block] = binding.copy_outputs_to_cpu()
        cache.store(token_ids, block)

    def _fill(self, kind: CacheKind, rows: Sequence[int], tokens: range, addresses: Sequence[int]) -> None:
        """Copy what lies at `addresses`, one for each cache of a kind, to these tokens of rows."""
        table, binding = self._tables[kind], self._binding("fill_tokens", kind)
        shape = table.tokens_shape(len(rows), len(tokens))
        for index, address in enumerate(addresses):
            binding.bind_input(computed_name(index), self.device, 0, self.dtype, shape, address)
        binding.bind_cpu_input("targets", table.bases(rows))
        binding.bind_cpu_input("offsets", table.offsets(tokens))
        self._sessions["fill_tokens"].run_with_iobinding(binding)

    def _staging(self, num_blocks: int) -> "_Staging":
        staging = self._stagings.get(num_blocks)
        if staging is None:
            [table] = self._tables.values()
            _, *shape = table.tokens_shape(1, num_blocks * BLOCK_TOKENS)
            staging = _Staging(len(table.names), tuple(shape), self.dtype, self.device)
            self._stagings[num_blocks] = staging
        return staging

    def _shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of one cache, all rows."""
        return self._num_rows, *self.layout.shapes[name]

    def _binding(self, graph: str, kind: CacheKind) -> ort.IOBinding:
        """Returns the bindings of a graph to the caches of a kind, which stay for good."""
        binding = self._bindings.get((graph, kind))
        if binding is None:
            binding = self._bindings[graph, kind] = self._sessions[graph].io_binding()
            table = self._tables[kind]
            caches = self.device, 0, self.dtype, table.flat, table.memory.data_ptr()
            binding.bind_input("caches", *caches)
            if graph == "read_tokens":
                binding.bind_output("tokens", "cpu")
            else:
                binding.bind_output("new_caches", *caches)
        return binding
