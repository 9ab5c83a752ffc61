"""A prompt read in pieces, or partly from the prefix cache, gives the answer of a prompt read whole."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.conformance.backends import ON_DEVICE, load

from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.golden import check_golden_examples
from dragoman.server.engine.offline import decode_offline
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.encoding import ModelInput
from dragoman.server.execution.host_memory import HostMemory
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS

LARGE = 64 * 1024 * 1024

Input = tuple[list[int], DecodingParameters]


@pytest.fixture(
    params=[
        "bundles/count/1",
        "bundles/count/2",
        "extending/count/4",
        "halves/count/1",
        "halves/count/1" + ON_DEVICE,
    ],
    ids=["fp32", "int8", "old int8", "fp16", "fp16 on a device"],
)
def backend(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)


@pytest.fixture
def inputs(backend: Backend) -> list[Input]:
    """48 prompts after one of three prefixes or none, of lengths around the blocks' ends, greedy and sampled."""
    rng = random.Random(7)
    size = backend.bundle.manifest.dimensions.vocabulary_size
    prefixes = [[rng.randrange(4, size) for _ in range(length)] for length in (0, 31, 70, 130)]
    made = []
    for index in range(48):
        own = [rng.randrange(4, size) for _ in range(rng.choice([1, 2, 31, 32, 33, 50]))]
        parameters = DecodingParameters(
            max_tokens=rng.randint(1, 40), temperature=rng.choice([0.0, 0.0, 1.0]), seed=index
        )
        made.append(([2, *prefixes[index % 4], *own], parameters))
    return made


def assert_same(ours: list[Decoded], theirs: list[Decoded]) -> None:
    for a, b in zip((each.best for each in ours), (each.best for each in theirs), strict=True):
        assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
        assert a.log_probability == pytest.approx(b.log_probability, abs=1e-4)


def test_cold_warm_and_full_caches_answer_as_none(backend: Backend, inputs: list[Input]) -> None:
    alone = decode_offline(backend, inputs, num_slots=1)
    assert backend.prefix_cache.num_reused_tokens == 0
    cached = backend.with_prefix_cache(LARGE)
    assert_same(decode_offline(cached, inputs, num_slots=1), alone)
    num_cold = cached.prefix_cache.num_reused_tokens
    assert num_cold > 0
    assert_same(decode_offline(cached, inputs, num_slots=16), alone)
    assert cached.prefix_cache.num_reused_tokens > 2 * num_cold
    # Five blocks for thirty: most of what is kept goes before it is asked for again.
    small = backend.with_prefix_cache(5 * cached.prefix_cache.num_bytes // 30)
    assert 0 < small.prefix_cache.max_blocks < 20
    assert_same(decode_offline(small, inputs, num_slots=16), alone)
    assert_same(decode_offline(small, inputs[::-1], num_slots=5)[::-1], alone)


def test_two_threads_on_one_cache_answer_as_alone(backend: Backend, inputs: list[Input]) -> None:
    alone = decode_offline(backend, inputs, num_slots=1)
    shared = backend.with_prefix_cache(LARGE)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(decode_offline, shared, inputs, num_slots=8)
        second = pool.submit(decode_offline, shared, inputs[::-1], num_slots=8)
        assert_same(first.result(), alone)
        assert_same(second.result()[::-1], alone)


def test_cached_keys_and_values_are_the_computed_ones_to_the_bit(backend: Backend) -> None:
    """The reason for reading prompts in blocks: int8 rounds, and a last bit's difference may round another way."""
    rng = random.Random(8)
    size = backend.bundle.manifest.dimensions.vocabulary_size
    prompt = [rng.randrange(4, size) for _ in range(3 * BLOCK_TOKENS + 5)]
    other = [*prompt[: 2 * BLOCK_TOKENS + 9], *(rng.randrange(4, size) for _ in range(20))]
    cold, warm = backend.rows(1), backend.with_prefix_cache(LARGE).rows(2)
    cold.start([0], [ModelInput(prompt)])
    warm.start([1, 0], [ModelInput(other), ModelInput(prompt)])
    if not isinstance(cold.memory, HostMemory) or not isinstance(warm.memory, HostMemory):
        pytest.skip("test_device_caches.py looks into those")
    for name, cache in cold.memory.caches.items():
        used = slice(len(prompt) - 1)
        np.testing.assert_array_equal(warm.memory.caches[name][0, :, used], cache[0, :, used])
        assert not warm.memory.caches[name][0, :, len(prompt) - 1 :].any(), (
            "nothing is written past the prompt"
        )


def test_a_shared_prefix_is_computed_once(backend: Backend) -> None:
    cached = backend.with_prefix_cache(LARGE)
    prefix = list(range(4, 4 + 2 * BLOCK_TOKENS))
    cached.rows(3).start([0, 1, 2], [ModelInput([*prefix, own]) for own in (100, 101, 102)])
    assert cached.prefix_cache.num_reused_tokens == 2 * len(prefix)
    assert cached.prefix_cache.num_computed_tokens == len(prefix) + 3


def test_a_bundle_without_the_graph_answers_and_reuses_nothing() -> None:
    old = load("schema_1/count/1").with_prefix_cache(LARGE)
    check_golden_examples(old)
    check_golden_examples(old)
    assert old.prefix_cache.max_blocks == old.prefix_cache.num_reused_tokens == 0
    assert old.prefix_cache.num_computed_tokens > 0
