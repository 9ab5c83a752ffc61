"""A request's answer is a function of the request and the bundle alone, never of its neighbours."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from server.backend import Backend
from server.bundle import Bundle
from server.golden import check_golden_examples
from server.lane import Finished, Lane, RunningSequence, decode_offline
from server.sampling import DecodingParameters
from server.scheduler import Scheduler

FIXTURES = Path(__file__).parents[1] / "fixtures"
BUNDLES = [
    *(f"bundles/{name}" for name in ("spell/1", "spell/2", "count/1", "count/2")),
    *(f"extending/{name}" for name in ("count/3", "count/4")),
]

Input = tuple[list[int], DecodingParameters]


@pytest.fixture(params=BUNDLES)
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend.load(Bundle.read(FIXTURES / request.param), provider="cpu", num_threads=1)


@pytest.fixture
def inputs(backend: Backend) -> list[Input]:
    """64 inputs of mixed lengths, greedy and sampled, with minimum and maximum lengths."""
    rng = random.Random(3)
    tokenizer = backend.bundle.tokenizer
    translates = backend.bundle.manifest.task == "translation"
    words = ["one ", "two ", "three ", "four ", "five ", "six ", "seven "]
    made = []
    for index in range(64):
        text = "".join(rng.choices("0123456789", k=rng.randint(1, 20)))
        if not translates:
            text = "".join(rng.choices(words, k=rng.randint(1, 9)))
        parameters = DecodingParameters(
            max_tokens=rng.randint(1, 60),
            min_tokens=rng.choice([0, 0, 10]),
            temperature=rng.choice([0.0, 0.0, 0.8, 1.5]),
            top_k=rng.choice([0, 5]),
            top_p=rng.choice([1.0, 0.9]),
            seed=index,
        )
        made.append((tokenizer.encode(text).ids, parameters))
    return made


def assert_same(ours: list[Finished], theirs: list[Finished]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
        assert a.log_probability == pytest.approx(b.log_probability, abs=1e-4)


def test_alone_and_in_a_batch_of_64(backend: Backend, inputs: list[Input]) -> None:
    alone = decode_offline(backend, inputs, num_slots=1)
    assert_same(decode_offline(backend, inputs, num_slots=64), alone)
    assert_same(decode_offline(backend, inputs, num_slots=5), alone)


def test_in_another_order(backend: Backend, inputs: list[Input]) -> None:
    forward = decode_offline(backend, inputs, num_slots=16)
    assert_same(decode_offline(backend, inputs[::-1], num_slots=16)[::-1], forward)


def test_while_neighbours_are_cancelled(backend: Backend, inputs: list[Input]) -> None:
    alone = decode_offline(backend, inputs, num_slots=1)
    rng = random.Random(4)
    scheduler, lane = Scheduler(1, 16, len(inputs), 10_000), Lane(backend, 16)
    sequences = [RunningSequence.create(ids, parameters) for ids, parameters in inputs]
    for sequence in sequences:
        scheduler.submit(sequence)
    doomed = rng.sample(sequences, 30)
    while scheduler.has_work(0):
        if doomed and rng.random() < 0.7:
            victim = doomed.pop()
            if victim.result is None:
                scheduler.cancel(victim)
        for sequence in lane.execute(scheduler.plan(0, 0.0)):
            if sequence.result is not None:
                scheduler.finish(sequence)
    survivors = [(s.result, expected) for s, expected in zip(sequences, alone, strict=True) if s.result]
    assert len(survivors) >= 34
    assert_same([ours for ours, _ in survivors], [theirs for _, theirs in survivors])


def test_committed_bundles_still_answer(backend: Backend) -> None:
    assert backend.bundle.manifest.golden_examples
    check_golden_examples(backend)


def test_loading_a_bundle_leaves_the_float_mode_of_its_thread_alone(backend: Backend) -> None:
    """onnxruntime's set_denormal_as_zero would flush the smallest numbers of everything else on the thread."""
    assert float(np.float32(1e-40) * np.float32(0.5)) > 0
    assert sys.float_info.min * 0.5 > 0
