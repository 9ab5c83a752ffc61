"""A request's answer is a function of the request and the bundle alone, never of its neighbours."""

import random
import sys

import msgspec
import numpy as np
import pytest
from tests.conformance.backends import ON_DEVICE, load

from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.golden import check_golden_examples
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.offline import decode_offline
from dragoman.server.engine.scheduler import Scheduler
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.execution.backend import Backend

BUNDLES = [
    *(f"bundles/{name}" for name in ("spell/1", "spell/2", "count/1", "count/2")),
    "schema_1/spell/2",  # no graph of several steps, no best tokens, and cross-attention's last token in no cache
    "schema_1/count/1",  # prompts are read by `prefill`
    "extending/count/4",
    *(f"halves/{name}{place}" for name in ("spell/1", "count/1") for place in ("", ON_DEVICE)),
]

Input = tuple[list[int], DecodingParameters]


@pytest.fixture(params=BUNDLES)
def backend(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)


@pytest.fixture
def inputs(backend: Backend) -> list[Input]:
    """64 inputs of mixed lengths, with every way of decoding among them."""
    rng = random.Random(3)
    tokenizer = backend.bundle.tokenizer
    translates = backend.bundle.manifest.task == "translation"
    words = ["one ", "two ", "three ", "four ", "five ", "six ", "seven "]
    made = []
    for index in range(64):
        text = "".join(rng.choices("0123456789", k=rng.randint(1, 20)))
        if not translates:
            text = "".join(rng.choices(words, k=rng.randint(1, 9)))
        made.append((tokenizer.encode(text).ids, random_parameters(rng, seed=index)))
    return made


def random_parameters(rng: random.Random, seed: int) -> DecodingParameters:
    max_tokens = rng.randint(6, 50)
    prefix = tuple(rng.randint(4, 20) for _ in range(rng.choice([0, 0, 0, 2])))
    shared = DecodingParameters(
        max_tokens=max_tokens,
        min_tokens=rng.choice([0, 0, 5]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        no_repeat_ngram_size=rng.choice([0, 0, 3]),
        suppressed_token_ids=rng.choice([(), (7,)]),
        prefix=prefix,
        length_penalty=rng.choice([0.0, 1.0, 0.6]),
        num_alternatives=rng.choice([None, 0, 4]),
    )
    if rng.random() < 0.4:
        beam_size = rng.randint(2, 5)
        return msgspec.structs.replace(
            shared,
            beam_size=beam_size,
            patience=rng.choice([1.0, 2.0]),
            num_hypotheses=rng.randint(1, beam_size),
        )
    return msgspec.structs.replace(
        shared,
        temperature=rng.choice([0.0, 0.8, 1.5]),
        top_k=rng.choice([0, 5]),
        top_p=rng.choice([1.0, 0.9]),
        seed=seed,
        sample=rng.randint(0, 2),
    )


def assert_same(ours: list[Decoded], theirs: list[Decoded]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for mine, other in zip(a.hypotheses, b.hypotheses, strict=True):
            assert (mine.token_ids, mine.finish_reason) == (other.token_ids, other.finish_reason)
            assert mine.log_probability == pytest.approx(other.log_probability, abs=1e-4)
            assert mine.score == pytest.approx(other.score, abs=1e-4)
            for token, same in zip(mine.tokens, other.tokens, strict=True):
                assert token.log_probability == pytest.approx(same.log_probability, abs=1e-4)
                assert [token_id for token_id, _ in token.alternatives] == [
                    token_id for token_id, _ in same.alternatives
                ]


@pytest.fixture
def alone(backend: Backend, inputs: list[Input], request: pytest.FixtureRequest) -> list[Decoded]:
    """What each input gets alone, computed once a bundle."""
    name = request.node.callspec.params["backend"]
    if name not in _ALONE:
        _ALONE[name] = [decode_offline(backend, [each], num_slots=each[1].beam_size)[0] for each in inputs]
    return _ALONE[name]


_ALONE: dict[str, list[Decoded]] = {}


def test_alone_and_in_a_batch_of_64(backend: Backend, inputs: list[Input], alone: list[Decoded]) -> None:
    assert any(len(finished.hypotheses) > 1 for finished in alone)
    assert_same(decode_offline(backend, inputs, num_slots=64), alone)
    assert_same(decode_offline(backend, inputs, num_slots=5), alone)


def test_in_another_order(backend: Backend, inputs: list[Input]) -> None:
    forward = decode_offline(backend, inputs, num_slots=16)
    assert_same(decode_offline(backend, inputs[::-1], num_slots=16)[::-1], forward)


def test_while_neighbours_are_cancelled(backend: Backend, inputs: list[Input], alone: list[Decoded]) -> None:
    rng = random.Random(4)
    sequences = [LaneSequence.create(ids, parameters) for ids, parameters in inputs]
    scheduler, lane = Scheduler(16), Lane(backend, 16)
    for sequence in sequences:
        scheduler.submit(sequence)
    doomed = rng.sample(sequences, 30)
    while scheduler.has_work or lane.alignments:
        if doomed and rng.random() < 0.7:
            victim = doomed.pop()
            if not victim.has_ended:
                scheduler.cancel(victim)
        for sequence in lane.execute(scheduler.plan(0.0)):
            if sequence.has_ended:
                scheduler.finish(sequence)
        lane.alignments.run()
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
