"""The prefix cache against a naive model of it, and what it may never do."""

import functools
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dragoman.server.execution.prefix_cache import PrefixCache

BLOCK = 2
SHAPE = (4, 2, BLOCK, 3)  # keys and values of two layers
BLOCK_BYTES = 4 * 2 * BLOCK * 3 * 4
CAPACITY = 12
FLOAT = np.dtype(np.float32)

Prefix = tuple[int, ...]


def new_cache(num_blocks: int) -> PrefixCache:
    return PrefixCache(num_blocks * BLOCK_BYTES + BLOCK_BYTES - 1, SHAPE, FLOAT)


def last_block(token_ids: Prefix) -> NDArray[np.float32]:
    """What stands at a position depends on all tokens up to it, as attention has it."""
    ends = range(len(token_ids) - BLOCK + 1, len(token_ids) + 1)
    return np.stack([last_states(token_ids[:end]) for end in ends], axis=2)


@functools.cache
def last_states(token_ids: Prefix) -> NDArray[np.float32]:
    return np.random.default_rng([len(token_ids), *token_ids]).standard_normal((4, 2, 3), np.float32)


def load(cache: PrefixCache, token_ids: Prefix) -> int:
    """The number of tokens found, which must be the right ones and nothing more."""
    with cache.known(token_ids) as blocks:
        for end, block in enumerate(blocks, 1):
            np.testing.assert_array_equal(block, last_block(token_ids[: end * BLOCK]))
    return len(blocks) * BLOCK


def store(cache: PrefixCache, token_ids: Prefix) -> None:
    """Store every block of a prompt, as they come to be computed."""
    for end in range(BLOCK, len(token_ids) + 1, BLOCK):
        cache.store(token_ids[:end], last_block(token_ids[:end]))


def test_whole_blocks_of_the_longest_known_prefix_come_back() -> None:
    cache = new_cache(8)
    assert load(cache, (1, 2, 3, 4)) == 0
    store(cache, (1, 2, 3, 4))
    assert load(cache, (1, 2, 3, 4)) == 4
    assert load(cache, (1, 2, 3, 4, 5)) == 4
    assert load(cache, (1, 2, 3)) == 2
    assert load(cache, (1, 2, 9, 4)) == 2
    assert load(cache, (1,)) == 0
    assert load(cache, ()) == 0
    assert load(cache, (3, 4)) == 0, "the same tokens after another prefix are another block"
    assert cache.num_bytes == 2 * BLOCK_BYTES


def test_tokens_with_the_same_hash_are_told_apart() -> None:
    first, second = (-1, 7), (-2, 7)  # hash(-1) == hash(-2) in CPython, and so are those of the tuples
    assert hash(first) == hash(second)
    cache = new_cache(4)
    cache.store(first, np.zeros(SHAPE, np.float32))
    for token_ids, num_blocks in ((second, 0), (first, 1)):
        with cache.known(token_ids) as blocks:
            assert len(blocks) == num_blocks


def test_the_prefix_unused_for_longest_goes_leaves_first() -> None:
    cache = new_cache(3)
    store(cache, (1, 1, 2, 2))
    store(cache, (5, 5))
    load(cache, (1, 1))
    store(cache, (6, 6))  # in place of 2, 2: older than 5, 5
    assert load(cache, (1, 1, 2, 2)) == 2
    store(cache, (7, 7))  # in place of 5, 5
    assert [load(cache, (token, token)) for token in (5, 6, 7)] == [0, 2, 2]


def test_a_prompt_longer_than_the_memory_keeps_its_beginning() -> None:
    cache = new_cache(2)
    store(cache, (1, 1, 2, 2, 3, 3))
    assert load(cache, (1, 1, 2, 2, 3, 3)) == 4
    assert cache.num_bytes == 2 * BLOCK_BYTES


def test_a_block_whose_prefix_went_meanwhile_is_not_kept() -> None:
    cache = new_cache(1)
    store(cache, (1, 1))
    store(cache, (2, 2))
    cache.store((1, 1, 3, 3), last_block((1, 1, 3, 3)))
    assert load(cache, (1, 1, 3, 3)) == 0
    assert load(cache, (2, 2)) == 2


@pytest.mark.parametrize("max_bytes", [0, BLOCK_BYTES - 1])
def test_without_room_for_a_block_nothing_is_kept(max_bytes: int) -> None:
    cache = PrefixCache(max_bytes, SHAPE, FLOAT)
    store(cache, (1, 2, 3, 4))
    assert (load(cache, (1, 2, 3, 4)), cache.max_blocks, cache.num_bytes) == (0, 0, 0)


def test_only_whole_blocks_are_kept() -> None:
    with pytest.raises(AssertionError, match="whole blocks"):
        new_cache(2).store((1, 2, 3), last_block((1, 2, 3)))


@dataclass
class Naive:
    """Prefixes by last use, in a list; the oldest without a longer one goes."""

    num_blocks: int
    used: dict[Prefix, int] = field(default_factory=dict)
    time: int = 0

    def load(self, token_ids: Prefix) -> int:
        self.time += 1
        num_tokens = 0
        for end in range(BLOCK, len(token_ids) + 1, BLOCK):
            if token_ids[:end] not in self.used:
                break
            self.used[token_ids[:end]] = self.time
            num_tokens = end
        return num_tokens

    def store(self, token_ids: Prefix) -> None:
        known = self.load(token_ids)
        if known != len(token_ids) - BLOCK:
            return
        if len(self.used) == self.num_blocks:
            leaves = [
                prefix
                for prefix in self.used
                if prefix != token_ids[:known] and not self.has_children(prefix)
            ]
            if not leaves:
                return
            del self.used[min(leaves, key=lambda prefix: self.used[prefix])]
        self.used[token_ids] = self.time

    def has_children(self, prefix: Prefix) -> bool:
        return any(len(other) > len(prefix) and other[: len(prefix)] == prefix for other in self.used)


prompts = st.lists(st.integers(0, 1), min_size=0, max_size=CAPACITY).map(tuple)
actions = st.lists(st.tuples(st.sampled_from(["load", "store", "store last"]), prompts), max_size=40)


@given(st.integers(0, 6), actions)
def test_any_history_is_that_of_the_naive_model(num_blocks: int, history: list[tuple[str, Prefix]]) -> None:
    cache, naive = new_cache(num_blocks), Naive(num_blocks)
    for action, token_ids in history:
        whole = token_ids[: len(token_ids) // BLOCK * BLOCK]
        if action == "load":
            assert load(cache, token_ids) == naive.load(token_ids)
            continue
        first = BLOCK if action == "store" else max(BLOCK, len(whole))
        for end in range(first, len(whole) + 1, BLOCK):
            cache.store(whole[:end], last_block(whole[:end]))
            naive.store(whole[:end])
        assert cache.num_bytes == len(naive.used) * BLOCK_BYTES <= num_blocks * BLOCK_BYTES
    for prefix in list(naive.used):
        assert load(cache, prefix) == len(prefix)


def test_threads_that_share_a_cache_get_their_own_tokens() -> None:
    cache, failures = new_cache(5), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(200):
                prompt = tuple(rng.integers(0, 2, CAPACITY).tolist())
                load(cache, prompt)
                store(cache, prompt)
        except BaseException as error:  # noqa: BLE001 shown below, on the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache.num_bytes == 5 * BLOCK_BYTES
