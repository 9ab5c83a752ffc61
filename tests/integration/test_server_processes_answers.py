"""Answers do not say which lane or which layout made them; samples without a seed differ."""

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.integration.serving import BUNDLES, Served, serving
from tests.integration.test_server_processes import IN_PROCESSES, Request, pids_of

from dragoman.v1 import decoding_pb2

IN_THREADS = ("engine.lanes_run_in=threads", "engine.lanes=1")
NUM_CALLS = 24


async def samples(served: Served, **options: Any) -> Sequence[tuple[str, ...]]:
    """What each of several calls that are alike is answered with."""
    call = Request(
        model="spell",
        inputs=["12", "345"],
        options=decoding_pb2.DecodingOptions(temperature=3.0, num_hypotheses=4, max_tokens=12, **options),
    )
    answers = await asyncio.gather(*(served.translation.Translate(call) for _ in range(NUM_CALLS)))
    return [
        tuple(each.text for input_ in answer.translations for each in input_.hypotheses) for answer in answers
    ]


async def test_a_seed_decides_on_samples_whichever_lane_draws_them() -> None:
    async with serving(BUNDLES, *IN_PROCESSES) as served:
        seeded = set(await samples(served, seed=7))
        free = await samples(served)
        assert len(pids_of(served)) == 2
        others = set(await samples(served, seed=8))
    async with serving(BUNDLES, *IN_THREADS) as served:
        assert set(await samples(served, seed=7)) == seeded
    assert len(seeded) == len(others) == 1
    assert seeded != others
    assert len(set(free)) == NUM_CALLS, "no two lanes draw the same"
