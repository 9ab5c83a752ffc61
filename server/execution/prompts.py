"""The prefill of a prompt into one row, block by block, from wherever the prefix cache leaves off.

Every run of `extend` begins at a multiple of `BLOCK_TOKENS` and ends at the next or with the prompt, whether or not
what is before it came from the cache. The kernels therefore see the same shapes and values either way, and a
request's answer is the same to the bit.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.manifest import GraphRecord
from dragoman.server.execution.cache_memory import CacheMemory, bind_caches
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS, PrefixCache

__all__ = ["ChunkedPrefill"]


class ChunkedPrefill:
    """The graph `extend` over the rows of one memory, for the use of one thread at a time."""

    def __init__(
        self,
        session: ort.InferenceSession,
        graph: GraphRecord,
        memory: CacheMemory,
        prefix_cache: PrefixCache,
    ) -> None:
        self._session = session
        self._graph = graph
        self._memory = memory
        self._prefix_cache = prefix_cache
        self._token_ids: NDArray[np.int64] = np.zeros((1, BLOCK_TOKENS), np.int64)
        self._lengths: NDArray[np.int32] = np.zeros(1, np.int32)
        self._bindings: dict[int, ort.IOBinding] = {}

    def prefill(self, row: int, token_ids: Sequence[int]) -> int:
        """Fill the caches of `row` with the keys and values of `token_ids`.

        Returns:
            How many of them came from the prefix cache.
        """
        num_reused = self._memory.load_prefix(self._prefix_cache, row, token_ids)
        for start in range(num_reused, len(token_ids), BLOCK_TOKENS):
            block = token_ids[start : start + BLOCK_TOKENS]
            self.extend(row, start, block)
            if len(block) == BLOCK_TOKENS:
                self._memory.store_prefix(self._prefix_cache, row, token_ids[: start + BLOCK_TOKENS])
        return num_reused

    def extend(self, row: int, length: int, block: Sequence[int]) -> None:
        """Append the keys and values of at most `BLOCK_TOKENS` tokens to `row`, which holds `length` tokens."""
        token_ids = self._token_ids[:, : len(block)]
        token_ids[0] = block
        self._lengths[0] = length
        binding = self._bindings.get(row)
        if binding is None:
            binding = self._bindings[row] = self._session.io_binding()
            bind_caches(binding, self._graph, self._memory, row, row + 1)
        # Each time: for a device, what is bound is a copy.
        binding.bind_cpu_input("token_ids", token_ids)
        binding.bind_cpu_input("lengths", self._lengths)
        self._session.run_with_iobinding(binding)
