"""Keys and values of prompt prefixes seen before, so that prompts that share one have it computed once.

Blocks of tokens form a tree, as in vLLM's automatic prefix caching (Kwon et al. 2023): a block's keys and values
depend on all tokens before it, so a block is found only by way of its prefix. A block is known by its tokens
themselves, never by a hash alone. When memory is full, the block used longest ago that has none after it goes.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_TOKENS", "PrefixCache"]

BLOCK_TOKENS = 32
"""Tokens in a block, and in one run of the graph that fills it (docs/adr/0010-prefix-reuse.md)."""


@dataclass(eq=False, slots=True)
class _Node:
    """The empty prefix, or a block after it."""

    children: dict[tuple[int, ...], "_Block"] = field(default_factory=dict)


@dataclass(eq=False, slots=True, kw_only=True)
class _Block(_Node):
    token_ids: tuple[int, ...]
    parent: _Node
    index: int  # in the storage


class PrefixCache:
    """Blocks of keys and values in memory of a fixed size, shared by all lanes; any thread may call.

    One lock is held while a block is copied: that takes a small part of the time to compute it.

    Attributes:
        max_blocks: blocks there is room for; 0 where nothing is kept.
        num_reused_tokens: prompt tokens taken from here so far.
        num_computed_tokens: prompt tokens that had to be run so far.
    """

    def __init__(
        self, max_bytes: int, block_shape: tuple[int, int, int, int], dtype: np.dtype[np.floating]
    ) -> None:
        """Reserve memory; the system backs it with pages as it fills.

        Args:
            max_bytes: most bytes of keys and values.
            block_shape: (caches, kv heads, tokens, head size).
            dtype: of keys and values.
        """
        self._block_bytes = int(np.prod(block_shape)) * dtype.itemsize
        self._block_tokens = block_shape[2]
        self.max_blocks = max_bytes // self._block_bytes
        self.num_reused_tokens = 0
        self.num_computed_tokens = 0
        self._num_reported_reused = self._num_reported_computed = 0
        self._storage = np.zeros((self.max_blocks, *block_shape), dtype)
        self._free = list(range(self.max_blocks))
        self._root = _Node()
        # The block used longest ago first; of one prefix the later blocks first, so that the first has no children.
        self._by_use: OrderedDict[_Block, None] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values held."""
        return len(self._by_use) * self._block_bytes

    @contextmanager
    def known(self, token_ids: Sequence[int]) -> Iterator[list[NDArray[np.floating]]]:
        """The blocks of the longest known prefix of `token_ids`, first to last; they are valid within the `with`.

        Each is (caches, kv heads, tokens, head size), the caches in the order in which they were stored.
        """
        with self._lock:
            path = self._find(token_ids)
            self._touch(path)
            yield [self._storage[block.index] for block in path]

    def store(self, token_ids: Sequence[int], block: Iterable[NDArray[np.floating]]) -> None:
        """Keep the last block of `token_ids`, a whole number of blocks.

        Nothing is kept where the block is known, where the blocks before it are gone, or where the prefix alone
        fills the memory.

        Args:
            token_ids: the tokens of the block, after those of all blocks before it.
            block: of each layer keys and values, (kv heads, tokens, head size), always in the same order.
        """
        assert token_ids, "an empty prefix needs no keeping"
        assert len(token_ids) % self._block_tokens == 0, "only whole blocks are kept"
        position = len(token_ids) // self._block_tokens - 1
        with self._lock:
            path = self._find(token_ids)
            self._touch(path)
            if len(path) != position:
                return
            parent = path[-1] if path else self._root
            index = self._take_index(parent)
            if index is None:
                return
            for stored, cache in zip(self._storage[index], block, strict=True):
                stored[:] = cache
            kept = _Block(token_ids=tuple(token_ids[self._tokens(position)]), parent=parent, index=index)
            parent.children[kept.token_ids] = kept
            self._touch([*path, kept])

    def count(self, *, num_reused: int, num_computed: int) -> None:
        """A prompt was started with so many tokens from here and so many run."""
        with self._lock:
            self.num_reused_tokens += num_reused
            self.num_computed_tokens += num_computed

    def take_counts(self) -> tuple[int, int]:
        """Tokens reused and computed since the last call, by whichever lane that was."""
        with self._lock:
            reused = self.num_reused_tokens - self._num_reported_reused
            computed = self.num_computed_tokens - self._num_reported_computed
            self._num_reported_reused, self._num_reported_computed = (
                self.num_reused_tokens,
                self.num_computed_tokens,
            )
        return reused, computed

    def _tokens(self, position: int) -> slice:
        return slice(position * self._block_tokens, (position + 1) * self._block_tokens)

    def _find(self, token_ids: Sequence[int]) -> list[_Block]:
        """The blocks of the longest known prefix, first to last."""
        path: list[_Block] = []
        node = self._root
        for position in range(len(token_ids) // self._block_tokens):
            block = node.children.get(tuple(token_ids[self._tokens(position)]))
            if block is None:
                break
            path.append(block)
            node = block
        return path

    def _touch(self, path: list[_Block]) -> None:
        for block in reversed(path):
            self._by_use[block] = None
            self._by_use.move_to_end(block)

    def _take_index(self, parent: _Node) -> int | None:
        """A free place in the storage, if need be the oldest block's; None where only blocks up to `parent` remain."""
        if self._free:
            return self._free.pop()
        oldest = next(iter(self._by_use), None)
        if oldest is None or oldest is parent:
            return None
        assert not oldest.children, "a block is used whenever one after it is"
        del self._by_use[oldest]
        del oldest.parent.children[oldest.token_ids]
        return oldest.index
