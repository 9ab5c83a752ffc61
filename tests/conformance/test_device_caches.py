"""Caches on a device give the answers of caches in numpy's memory, to the bit; CUDA gives the CPU's tokens."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tests.conformance.backends import FIXTURES, ON_DEVICE, load
from tests.conformance.exported_models import export
from tests.threaded_engine import ThreadedEngine

import dragoman.server.execution.sessions
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.golden import check_golden_examples
from dragoman.server.engine.offline import decode_offline
from dragoman.server.engine.scoring import score_offline
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.device_memory import DeviceMemory
from dragoman.server.execution.encoding import ModelInput
from dragoman.server.execution.host_memory import HostMemory
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS
from dragoman.server.execution.rows import Rows
from dragoman.server.execution.sessions import load_sessions

BUNDLES = ("halves/spell/1", "halves/count/1")
LARGE = 1 << 24
SHAPE_ARITHMETIC = {"Add", "Cast", "Concat", "Gather", "Mul", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze"}

Input = tuple[list[int], DecodingParameters]

needs_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="needs an onnxruntime for CUDA, and a GPU",
)


def random_prompt(rng: random.Random, backend: Backend, num_tokens: int) -> list[int]:
    return [rng.randrange(4, backend.bundle.manifest.dimensions.vocabulary_size) for _ in range(num_tokens)]


def mixed(backend: Backend, *, temperatures: tuple[float, ...] = (0.0, 0.8)) -> list[Input]:
    """Greedy, sampled and with beams; a third of the prompts begin the same."""
    rng = random.Random(11)
    translates = backend.bundle.manifest.task == "translation"
    shared = random_prompt(rng, backend, 2 * BLOCK_TOKENS + 5)
    made = []
    for index in range(48):
        own = random_prompt(rng, backend, rng.choice([1, 7, 20, 24] if translates else [1, 31, 32, 33, 80]))
        beam_size = rng.choice([1, 1, 4])
        parameters = DecodingParameters(
            max_tokens=rng.randint(5, 40),
            beam_size=beam_size,
            num_hypotheses=beam_size,
            temperature=0.0 if beam_size > 1 else rng.choice(temperatures),
            align=translates and rng.random() < 0.3,
            seed=index,
        )
        made.append((own if translates else [2, *shared[: (index % 3) * 34], *own], parameters))
    return made


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("num_slots", [5, 32])
def test_every_way_of_decoding_gives_the_same_answers(bundle: str, num_slots: int) -> None:
    host, device = load(bundle), load(bundle + ON_DEVICE)
    assert isinstance(device.rows(1).memory, DeviceMemory)
    inputs = mixed(host)
    expected = decode_offline(host, inputs, num_slots=num_slots)
    assert repr(decode_offline(device, inputs, num_slots=num_slots)) == repr(expected)
    cached, cached_host = device.with_prefix_cache(LARGE), host.with_prefix_cache(LARGE)
    assert repr(decode_offline(cached, inputs, num_slots=num_slots)) == repr(expected)
    decode_offline(cached_host, inputs, num_slots=num_slots)
    assert cached.prefix_cache.num_reused_tokens == cached_host.prefix_cache.num_reused_tokens
    assert (cached.prefix_cache.num_reused_tokens > 0) == bundle.startswith("halves/count")


@pytest.mark.parametrize("bundle", BUNDLES)
def test_given_texts_get_the_same_scores(bundle: str) -> None:
    host = load(bundle)
    rng = random.Random(12)
    inputs, outputs = ([random_prompt(rng, host, rng.randint(1, 20)) for _ in range(40)] for _ in range(2))
    assert score_offline(load(bundle + ON_DEVICE), inputs, outputs) == score_offline(host, inputs, outputs)


def row(rows: Rows, index: int) -> dict[str, Any]:
    """What the row holds: its numbers and the tokens of its caches that count."""
    memory = rows.memory
    numbers = [int(each[index]) for each in rows.slots.inputs.values()]
    if isinstance(memory, HostMemory):
        caches = memory.caches
    else:
        assert isinstance(memory, DeviceMemory)
        caches = {name: memory.cache(name) for name in memory.layout.shapes}
    held = {}
    for name, cache in caches.items():
        if name.startswith("last_"):
            held[name] = cache[index].tolist()
        else:
            held[name] = cache[index, :, : numbers[2 if name.startswith("cross_") else 1]].tolist()
    return {"numbers": numbers, **held}


@pytest.mark.parametrize("bundle", BUNDLES)
def test_rows_are_started_copied_and_forked_alike(bundle: str) -> None:
    host, device = load(bundle).rows(6), load(bundle + ON_DEVICE).rows(6)
    rng = random.Random(13)
    inputs = [random_prompt(rng, load(bundle), length) for length in (3, 24, 17, 20)]
    for rows in (host, device):
        rows.start([4, 0, 1, 2], [ModelInput(ids) for ids in inputs])
        rows.copy([4], [3])
        rows.copy([2, 2], [4, 5])
        rows.decode(6)
        rows.decode(3)  # whatever the rows behind held is gone
        rows.copy([2, 0, 2], [5, 4, 3])
        rows.fork([2], [5])
        rows.slots.feed([9, 8, 7, 6, 5, 4])
        rows.decode(6)
        rows.fork([2, 2], [5, 3])
    for index in range(6):
        assert row(device, index) == row(host, index)
    np.testing.assert_array_equal(device.decode(6).log_probabilities, host.decode(6).log_probabilities)


def test_prefixes_cross_to_a_device_and_back_in_memory_of_a_fixed_size() -> None:
    """A whole row was reserved for each prompt that was found, and for each block that was kept."""
    backend = load("halves/count/1" + ON_DEVICE).with_prefix_cache(LARGE)
    rows = backend.rows(2)
    memory, cache = rows.memory, backend.prefix_cache
    row_bytes = sum(int(np.prod(shape)) for shape in memory.layout.shapes.values()) * memory.dtype.itemsize
    prompts = [random_prompt(random.Random(seed), backend, 7 * BLOCK_TOKENS + 1) for seed in (1, 2)]
    for prompt in prompts:
        rows.start([0], [ModelInput(prompt)])
    tracemalloc.start()
    try:
        assert memory.load_prefix(cache, 1, prompts[0]) == 7 * BLOCK_TOKENS
        memory.store_prefix(cache, 1, prompts[0][: 3 * BLOCK_TOKENS])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < row_bytes // 2, "of eight blocks in a row, less than four"


def test_a_long_prefix_crosses_in_groups_of_blocks_and_is_the_computed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dragoman.server.execution.device_memory._STAGED_BLOCKS", 3)
    backend = load("halves/count/1" + ON_DEVICE).with_prefix_cache(LARGE)
    rows = backend.rows(2)
    for num_blocks in (1, 3, 5, 7):
        prompt = random_prompt(random.Random(num_blocks), backend, num_blocks * BLOCK_TOKENS + 9)
        rows.start([0], [ModelInput(prompt)])
        num_reused = backend.prefix_cache.num_reused_tokens
        rows.start([1], [ModelInput(prompt)])
        assert backend.prefix_cache.num_reused_tokens - num_reused == num_blocks * BLOCK_TOKENS
        assert row(rows, 1) == row(rows, 0)


def test_a_cache_of_halves_takes_half_the_memory() -> None:
    halves, singles = load("halves/count/1"), load("extending/count/3")
    for backend, dtype in ((halves, np.float16), (singles, np.float32)):
        memory = backend.rows(2).memory
        assert isinstance(memory, HostMemory)
        assert {cache.dtype for cache in memory.caches.values()} == {np.dtype(dtype)}
    # The same dimensions but for the vocabulary.
    blocks = [each.with_prefix_cache(LARGE).prefix_cache.max_blocks for each in (halves, singles)]
    assert blocks[0] == 2 * blocks[1]


@pytest.mark.parametrize("name", ["translation as in the paper", "generation, GELU"])
def test_a_device_tells_the_best_tokens_that_the_host_tells(name: str, tmp_path: Path) -> None:
    _, exported = export(name, tmp_path, "fp16")
    bundle = exported.bundle
    sessions = load_sessions(bundle, provider="cpu", num_threads=1, on_device=True)
    host, device = exported.rows(5), Backend(bundle, sessions, device="cpu").rows(5)
    rng = random.Random(14)
    inputs = [random_prompt(rng, exported, length) for length in (3, 20, 9)]
    for num_best, needs_all in ((1, False), (8, True), (3, False)):
        told = []
        for rows in (host, device):
            rows.start([0, 1, 2], [ModelInput(ids) for ids in inputs])
            told.append(rows.decode(3, num_best, needs_all=needs_all))
        ours, theirs = told
        assert min(theirs.best.shape[1], ours.best.shape[1]) >= num_best
        np.testing.assert_array_equal(theirs.best[:, :num_best], ours.best[:, :num_best])
        np.testing.assert_array_equal(theirs.token_ids[:, :num_best], ours.token_ids[:, :num_best])
        if needs_all:
            np.testing.assert_array_equal(theirs.log_probabilities, ours.log_probabilities)


@needs_cuda
@pytest.mark.parametrize("bundle", BUNDLES)
def test_cuda_leaves_nothing_but_shapes_to_the_cpu(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dragoman.server.execution.sessions._session_options

    def profiled(provider: str, num_threads: int) -> ort.SessionOptions:
        made = options(provider, num_threads)
        made.enable_profiling, made.profile_file_prefix = True, str(tmp_path / "profile")
        return made

    monkeypatch.setattr(dragoman.server.execution.sessions, "_session_options", profiled)
    cuda = Backend.load(Bundle.read(FIXTURES / bundle), provider="cuda", num_threads=1)
    decode_offline(cuda.with_prefix_cache(LARGE), mixed(cuda), num_slots=32)
    nodes = [
        event["args"]
        for session in cuda.sessions.values()
        for event in json.loads(Path(session.end_profiling()).read_text())
        if event["cat"] == "Node" and event["name"].endswith("kernel_time")
    ]
    on_cpu = [node for node in nodes if node["provider"] == "CPUExecutionProvider"]
    assert 0 < len(on_cpu) < len(nodes)
    assert {node["op_name"] for node in on_cpu} <= SHAPE_ARITHMETIC
    assert max(int(node["output_size"]) for node in on_cpu) <= 64  # bytes


@needs_cuda
@pytest.mark.parametrize("bundle", BUNDLES)
def test_cuda_gives_the_tokens_of_the_cpu(bundle: str) -> None:
    """Golden examples are far from ties; random prompts are not, so a few may part there."""
    cuda = Backend.load(Bundle.read(FIXTURES / bundle), provider="cuda", num_threads=1)
    check_golden_examples(cuda)
    inputs = mixed(cuda, temperatures=(0.0,))
    ours = decode_offline(cuda.with_prefix_cache(LARGE), inputs, num_slots=32)
    theirs = decode_offline(load(bundle), inputs, num_slots=32)
    num_equal = sum(a.best.token_ids == b.best.token_ids for a, b in zip(ours, theirs, strict=True))
    assert num_equal >= len(inputs) - 3
    others = decode_offline(cuda, inputs, num_slots=5)
    assert [each.best.token_ids for each in others] == [each.best.token_ids for each in ours]


@needs_cuda
async def test_two_lanes_take_turns_at_a_gpu() -> None:
    """While one records a step, whatever the other asked of the device would fail both."""
    cuda = Backend.load(Bundle.read(FIXTURES / BUNDLES[0]), provider="cuda", num_threads=1)
    inputs = mixed(cuda, temperatures=(0.0,))
    expected = decode_offline(cuda, inputs, num_slots=32)
    engine = ThreadedEngine(cuda, EngineSettings(provider="cuda", lanes=2, slots_per_lane=16))
    try:
        tickets = [engine.submit(ids, parameters) for ids, parameters in inputs]
        found = [await ticket.result() for ticket in tickets]
    finally:
        engine.close()
    num_equal = sum(a.best.token_ids == b.best.token_ids for a, b in zip(found, expected, strict=True))
    assert num_equal >= len(inputs) - 3
