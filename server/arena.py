"""Preallocated keys and values of every row a lane can run, and the step's small inputs beside them.

Memory is fixed at start: for each decoder layer two arrays (rows, kv heads, capacity, head size) per kind of
attention. `OrtValue.ortvalue_from_numpy` shares numpy's memory on the CPU, so the first B rows bind to a graph
without a copy and the operators append to them in place.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.bundle import Manifest

__all__ = ["Arena"]

_LAST = "last_cross_"
_CACHE_INPUT = re.compile(r"(?P<kind>last_cross_|cross_|)(?:key|value)_\d+")


class Arena:
    """The state of `num_rows` rows.

    Attributes:
        token_ids: (rows,) int64, the token each row feeds into the next step.
        lengths: (rows,) int32, tokens already in the row's own cache.
        source_lengths: (rows,) int32, tokens of the row's source; 1 where there is none, so that a row that was
            never started is harmless.
        caches: by graph input name, float32, rows first.
    """

    def __init__(self, manifest: Manifest, num_rows: int) -> None:
        self.num_rows = num_rows
        self.token_ids: NDArray[np.int64] = np.zeros(num_rows, np.int64)
        self.lengths: NDArray[np.int32] = np.zeros(num_rows, np.int32)
        self.source_lengths: NDArray[np.int32] = np.ones(num_rows, np.int32)
        dims, limits = manifest.dimensions, manifest.limits
        shapes = {
            "": (dims.num_kv_heads, limits.max_context_tokens, dims.head_size),
            "cross_": (dims.num_kv_heads, limits.max_source_tokens, dims.head_size),
            _LAST: (1, dims.num_kv_heads * dims.head_size),
        }
        self._kinds: dict[str, str] = {}
        self.caches: dict[str, NDArray[np.float32]] = {}
        for name in manifest.graphs["decode"].inputs:
            if cache := _CACHE_INPUT.fullmatch(name):
                self._kinds[name] = cache["kind"]
                self.caches[name] = np.zeros((num_rows, *shapes[cache["kind"]]), np.float32)

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows, used or not; the system backs them with pages as rows are first used."""
        small = self.token_ids.nbytes + self.lengths.nbytes + self.source_lengths.nbytes
        return small + sum(cache.nbytes for cache in self.caches.values())

    def keep(self, row: int, name: str, computed: NDArray[np.float32], num_tokens: int) -> None:
        """Copy what a graph computed for one row into cache `name`: (kv heads, tokens, head size), padding left out."""
        used = slice(None) if self._kinds[name] == _LAST else slice(num_tokens)
        self.caches[name][row, :, used] = computed[:, used]

    def row_caches(self, row: int) -> dict[str, NDArray[np.float32]]:
        """One row's caches by graph input name, each a view with a batch axis of one."""
        return {name: cache[row : row + 1] for name, cache in self.caches.items()}

    def copy(self, source: int, target: int) -> None:
        """Copy a row's whole state to another row; only the tokens there are get copied."""
        for array in (self.token_ids, self.lengths, self.source_lengths):
            array[target] = array[source]
        num_tokens = {"": self.lengths[source], "cross_": self.source_lengths[source], _LAST: 0}
        for name, cache in self.caches.items():
            self.keep(target, name, cache[source], num_tokens[self._kinds[name]])

    def fork(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows' own caches to rows that have the same source's keys and values already; none is both."""
        origins = np.asarray(sources)
        places = np.asarray(targets)
        self.lengths[places] = self.lengths[origins]
        used = slice(int(self.lengths[origins].max()))
        for name, cache in self.caches.items():
            if not self._kinds[name]:
                cache[places, :, used] = cache[origins, :, used]
