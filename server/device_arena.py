"""An arena whose caches live on an accelerator and never leave it.

Rows cannot be indexed there from Python, so three graphs of the bundle move them, as `export.row_graphs` describes:
`copy_rows`, `fill_rows` and, for generation, `read_rows`. They are bound to the caches' addresses, as the others are.
Prefixes are kept in the host's memory, which is larger: a block crosses in a fraction of the time to compute it.

With `device="cpu"` the same code runs on ONNX Runtime's CPU provider; that is how it is tested. On CUDA it has never
run (docs/adr/0013-halves-and-where-caches-live.md).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from server.arena import SMALL_INPUTS, Arena, Buffer
from server.bundle import Manifest
from server.prefix_cache import BLOCK_TOKENS, PrefixCache

__all__ = ["ROW_GRAPHS", "DeviceArena"]

ROW_GRAPHS = ("copy_rows", "fill_rows", "read_rows")
"""Graphs that only an arena on a device runs."""


class DeviceArena(Arena):
    """The caches and a copy of the step's small inputs on `device`; those inputs themselves stay numpy arrays.

    Attributes:
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
        super().__init__(manifest, num_rows, dtype)
        self.device = device
        self._sessions = sessions
        self._graphs = manifest.graphs
        # Zeros, not whatever was there: a kernel may multiply what it masks by 0, and NaN stays NaN.
        arrays = {name: np.zeros(shape, dtype) for name, shape in self._shapes.items()}
        small = {name: getattr(self, name).copy() for name in SMALL_INPUTS}
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            for name, array in {**arrays, **small}.items()
        }
        self._bindings: dict[str, ort.IOBinding] = {}

    def upload(self) -> None:
        """Bring the device's copy of the small inputs up to date, before a step."""
        for name in SMALL_INPUTS:
            self._values[name].update_inplace(getattr(self, name))

    def _buffer(self, name: str) -> Buffer:
        value = self._values[name]
        dtype = self.dtype if name in self._kinds else getattr(self, name).dtype
        return Buffer(self.device, value.data_ptr(), tuple(value.shape()), dtype)

    def keep(
        self, rows: Sequence[int], num_tokens: Sequence[int], computed: Mapping[str, ort.OrtValue]
    ) -> None:
        """As `Arena.keep`; padding is copied too, to where no row looks."""
        del num_tokens
        self._move("fill_rows", {"rows": rows}, {f"computed_{name}": v for name, v in computed.items()})

    def _copy_caches(self, source: int, targets: Sequence[int]) -> None:
        """As `Arena._copy_caches`, whole rows."""
        self._move("copy_rows", {"sources": [source] * len(targets), "targets": targets})

    def fork(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """As `Arena.fork`, but copies whole rows: what they have of the source is the same already."""
        self.lengths[list(targets)] = self.lengths[list(sources)]
        self._move("copy_rows", {"sources": sources, "targets": targets})

    def load_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> int:
        """As `Arena.load_prefix`; the row's other tokens become zeros."""
        whole = self._staging()
        num_tokens = cache.load(token_ids, list(whole.values()))
        if num_tokens:
            known = {
                name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array[None, :, :num_tokens]))
                for name, array in whole.items()
            }
            self.keep([row], [num_tokens], known)
        return num_tokens

    def store_prefix(self, cache: PrefixCache, row: int, token_ids: Sequence[int]) -> None:
        """As `Arena.store_prefix`."""
        if not cache.max_blocks:
            return
        positions = np.arange(len(token_ids) - BLOCK_TOKENS, len(token_ids))
        binding = self._sessions["read_rows"].io_binding()
        binding.bind_cpu_input("positions", positions)
        self.bind_caches(binding, self._graphs["read_rows"], row, row + 1)
        for name in self._graphs["read_rows"].outputs:
            binding.bind_output(name, "cpu")
        self._sessions["read_rows"].run_with_iobinding(binding)
        whole = self._staging()
        for array, block in zip(whole.values(), binding.copy_outputs_to_cpu(), strict=True):
            array[:, positions] = block[0]
        cache.store(token_ids, list(whole.values()))

    def _staging(self) -> dict[str, np.ndarray]:
        """One row's caches in the host's memory, to hand to and take from the prefix cache."""
        return {name: np.empty(shape[1:], self.dtype) for name, shape in self._shapes.items()}

    def _move(
        self,
        name: str,
        indices: Mapping[str, Sequence[int]],
        computed: Mapping[str, ort.OrtValue] | None = None,
    ) -> None:
        """Run one of the graphs over all rows."""
        session, graph = self._sessions[name], self._graphs[name]
        binding = self._bindings.get(name)
        if binding is None:
            binding = self._bindings[name] = session.io_binding()
            self.bind_caches(binding, graph, 0, self.num_rows)
        for key, rows in indices.items():
            binding.bind_cpu_input(key, np.array(rows, np.int64)[:, None])
        for key, value in (computed or {}).items():
            binding.bind_ortvalue_input(key, value)
        session.run_with_iobinding(binding)
