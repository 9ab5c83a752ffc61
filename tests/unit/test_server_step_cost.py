"""What sequences are taken to cost, and that an engine keeps the sum of its lanes small."""

import asyncio
import sys
from pathlib import Path

import pytest
from tests.threaded_engine import ThreadedEngine

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.cost import max_step_cost, step_cost
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.layout import engine_facts
from dragoman.server.engine.scheduler import Plan
from dragoman.server.engine.sequence import LaneSequence

BUNDLE = Bundle.read(Path(__file__).parents[1] / "fixtures" / "bundles" / "spell" / "1")


def test_plain_decoding_costs_nothing() -> None:
    for parameters in (
        DecodingParameters(max_tokens=9),
        DecodingParameters(max_tokens=9, min_tokens=5),
        DecodingParameters(max_tokens=9, beam_size=32, num_hypotheses=32),
    ):
        assert step_cost(parameters, 32_000) == 0


@pytest.mark.parametrize(
    "more",
    [
        {"top_k": 5, "temperature": 1.0},
        {"num_alternatives": 20, "temperature": 1.0},
        {"repetition_penalty": 1.2, "num_alternatives": 1},
        {"stop": ("a",), "temperature": 1.0},
    ],
)
def test_what_is_asked_for_more_costs_more(more: dict[str, object]) -> None:
    one, *others = more
    less = DecodingParameters(max_tokens=9, **{name: more[name] for name in others})  # type: ignore[arg-type]
    both = DecodingParameters(max_tokens=9, **more)  # type: ignore[arg-type]
    assert 0 < step_cost(less, 1000) < step_cost(both, 1000), one
    assert step_cost(both, 1000) <= step_cost(both, 32_000)


def test_a_large_model_may_take_longer_and_lanes_share() -> None:
    assert max_step_cost(10**5, 32, 2) * 2 == max_step_cost(10**5, 32, 1)
    assert max_step_cost(10**9, 32, 2) > 10 * max_step_cost(10**5, 32, 2)
    assert max_step_cost(10**5, 32, 64) == max_step_cost(10**5, 32, 32), "a few rows are always had"


@pytest.mark.skipif(sys.platform != "linux", reason="lanes are processes on Linux")
def test_lanes_share_where_they_are_threads_of_one_process() -> None:
    manifest = BUNDLE.manifest

    def cost(where: str, lanes: int) -> int:
        settings = EngineSettings(lanes=lanes, threads_per_lane=1, lanes_run_in=where)
        return engine_facts(manifest, settings, kernels="none", max_prefix_blocks=0).max_step_cost

    assert cost("threads", 2) * 2 == cost("threads", 1) == cost("processes", 2) == cost("processes", 1)


async def test_a_call_of_costly_samples_has_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    num_costly = []
    execute = Lane.execute

    def recorded(lane: Lane, plan: Plan) -> list[LaneSequence]:
        result = execute(lane, plan)
        num_costly.append(sum(sequence.cost > 0 for sequence in lane._sequences))
        return result

    monkeypatch.setattr(Lane, "execute", recorded)
    parameters = DecodingParameters(max_tokens=6, temperature=1.0, num_alternatives=3)
    each = step_cost(parameters, BUNDLE.manifest.dimensions.vocabulary_size)
    monkeypatch.setattr("dragoman.server.engine.layout.max_step_cost", lambda *_: 4 * each)
    engine = ThreadedEngine.of(BUNDLE, slots_per_lane=12)
    try:
        source = list(BUNDLE.tokenizer.encode("12").ids)
        tickets = engine.client.submit_all([(source, parameters)] * 20)
        await asyncio.gather(*(ticket.result() for ticket in tickets))
    finally:
        engine.close()
    assert max(num_costly) == 4
