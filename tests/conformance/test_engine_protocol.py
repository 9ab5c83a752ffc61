"""The line between fronts and lanes is data: through bytes, each option gives the answer that it gives without."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from tests.conformance.backends import load
from tests.threaded_engine import ThreadedEngine

from dragoman.server.config import EngineSettings
from dragoman.server.decoding.hypothesis import Decoded, FinishReason
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.api import Command, Failed, Finished, Report, Request, Submit, Tokens
from dragoman.server.engine.lane_loop import LaneLoop, ModelFront
from dragoman.server.engine.offline import decode_offline
from dragoman.server.engine.worker import LaneWorker, make_lane
from dragoman.server.execution.backend import Backend

BUNDLES = ["aligned/spell/1", "bundles/spell/2", "extending/count/4"]
TEXTS = {"translation": ["12", "90210", "7", "31415926"], "generation": ["one two", "seven", "", "nine ten"]}

EACH_OPTION: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": 5},
    "min_tokens": {"min_tokens": 25},
    "temperature": {"temperature": 1.5},
    "top_k": {"temperature": 2.0, "top_k": 3},
    "top_p": {"temperature": 2.0, "top_p": 0.5},
    "seed": {"temperature": 1.5, "seed": 2**64 - 1},
    "sample": {"temperature": 1.5, "sample": 3},
    "beam_size": {"beam_size": 4},
    "num_hypotheses": {"beam_size": 4, "num_hypotheses": 4},
    "length_penalty": {"beam_size": 4, "length_penalty": -0.5},
    "coverage_penalty": {"beam_size": 4, "num_hypotheses": 2, "coverage_penalty": 0.7},
    "patience": {"beam_size": 3, "num_hypotheses": 6, "patience": 2.0},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "suppressed_token_ids": {"suppressed_token_ids": (5, 9)},
    "suppressed_texts": {"suppressed_texts": ("two", "e ")},
    "prefix": {"prefix": (7, 9)},
    "num_alternatives": {"num_alternatives": 3},
    "align": {"num_alternatives": 0, "align": True},
    "stop": {"stop": ("o", "e t")},
}
MODEL = "spell/1"
NEED_ALIGN = {"coverage_penalty", "align"}


@pytest.fixture(params=BUNDLES)
def backend(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)


def inputs(backend: Backend) -> list[tuple[list[int], DecodingParameters]]:
    """Each option with a text, and some as streams: see `through_bytes`."""
    texts = TEXTS[backend.bundle.manifest.task]
    options = [name for name in EACH_OPTION if name not in NEED_ALIGN or "align" in backend.sessions]
    return [
        (
            backend.bundle.tokenizer.encode(texts[place % len(texts)]).ids,
            DecodingParameters(**{"max_tokens": 30, **EACH_OPTION[name]}),
        )
        for place, name in enumerate(options)
    ]


class BytesPort:
    """All commands at once, and reports, as bytes."""

    def __init__(self, command: Command) -> None:
        self._commands = [msgspec.msgpack.encode(command)]
        self.reports: list[bytes] = []

    def receive(self, *, wait: bool) -> Sequence[tuple[ModelFront[int], Command]] | None:
        if self._commands:
            return [((MODEL, 0), msgspec.msgpack.decode(self._commands.pop(), type=Command))]
        return None if wait else []

    def send(self, front: ModelFront[int], report: Report) -> None:
        self.reports.append(msgspec.msgpack.encode(report))


def through_bytes(backend: Backend) -> tuple[dict[int, Decoded], dict[int, list[int]]]:
    """Answers, and streamed tokens."""
    requests = [
        Request(place, place // 3, ids, parameters, 1e12, is_streamed=place % 2 == 0)
        for place, (ids, parameters) in enumerate(inputs(backend))
    ]
    port = BytesPort(Submit(requests))
    worker = LaneWorker(*make_lane(backend, EngineSettings(slots_per_lane=8)), port.send)
    LaneLoop(port, {MODEL: worker}).run()
    answers: dict[int, Decoded] = {}
    streamed: dict[int, list[int]] = {}
    for content in port.reports:
        for event in msgspec.msgpack.decode(content, type=Report).events:
            assert not isinstance(event, Failed), event
            if isinstance(event, Tokens):
                streamed.setdefault(event.id, []).extend(event.token_ids)
            if isinstance(event, Finished):
                answers[event.id] = Decoded(event.hypotheses)
    return answers, streamed


def test_each_option_gives_through_bytes_what_it_gives_without(backend: Backend) -> None:
    expected = decode_offline(backend, inputs(backend), num_slots=8)
    answers, streamed = through_bytes(backend)
    assert [answers[place] for place in range(len(expected))] == expected
    assert all(isinstance(each.best.finish_reason, FinishReason) for each in answers.values())
    for place, tokens in streamed.items():
        assert tuple(tokens) == answers[place].best.token_ids
    assert len(streamed) >= len(expected) // 2 - 1


async def test_lanes_in_threads_give_the_same(backend: Backend) -> None:
    expected, _ = through_bytes(backend)
    engine = ThreadedEngine(backend, EngineSettings(lanes=2, slots_per_lane=8))
    try:
        tickets = engine.client.submit_all(inputs(backend))
        found = await asyncio.gather(*(ticket.result() for ticket in tickets))
    finally:
        engine.close()
    assert found == [expected[place] for place in range(len(found))]


def test_no_option_is_left_out() -> None:
    assert EACH_OPTION.keys() == set(DecodingParameters.__struct_fields__)
    plain = DecodingParameters(max_tokens=30)
    for name, options in EACH_OPTION.items():
        assert getattr(DecodingParameters(**{"max_tokens": 30, **options}), name) != getattr(plain, name)
