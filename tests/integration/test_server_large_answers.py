"""An answer that does not fit into a message: refused before it is computed, or ended as soon as it shows."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.serving import (
    Served,
    error_of,
    eventually,
    one_version,
    serving,
    violations_of,
)

from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.scheduler import Plan
from dragoman.server.requests.answer_room import AnswerRoom, least_bytes
from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

Options = decoding_pb2.DecodingOptions
Request = translation_pb2.TranslateRequest
MAX_BYTES = 20_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(
        one_version(tmp_path, "spell/1", "count/2"),
        f"server.max_message_bytes={MAX_BYTES}",
        "engine.slots_per_lane=8",
    ) as served:
        yield served


@pytest.fixture
def num_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each step."""
    steps: list[int] = []
    execute = Lane.execute

    def recorded(lane: Lane, plan: Plan) -> Any:
        steps.append(plan.num_rows)
        return execute(lane, plan)

    monkeypatch.setattr(Lane, "execute", recorded)
    return steps


def samples(**options: Any) -> Options:
    return Options(temperature=2, seed=1, num_hypotheses=8, num_alternatives=20, **options)


async def test_what_is_sure_to_be_too_large_is_never_computed(served: Served, num_steps: list[int]) -> None:
    request = Request(model="spell", inputs=["1", "2"], options=samples(min_tokens=80))
    described = await violations_of(served.translation.Translate(request))
    [said] = described.values()
    assert list(described) == ["inputs"]
    assert said.startswith(
        "2 with 16 hypotheses in all and 20 alternatives to each token make an answer of at"
    )
    assert said.endswith(f"bytes, more than {MAX_BYTES}, the server's limit")
    pairs = [translation_pb2.ScoredPair(source="12", target="one two " * 8)] * 20
    scored = translation_pb2.ScoreTranslationsRequest(model="spell", pairs=pairs, num_alternatives=20)
    assert list(await violations_of(served.translation.ScoreTranslations(scored))) == ["pairs"]
    assert num_steps == []
    await eventually(lambda: served.rejected("spell", "admission", "invalid") == 2)


async def test_what_turns_out_to_be_too_large_ends_early_and_is_counted_as_that(
    served: Served, num_steps: list[int]
) -> None:
    options = samples(min_tokens=80, stop=["zzzzz"])  # it might end at once
    call = served.translation.Translate(Request(model="spell", inputs=["1"] * 8, options=options))
    described = await violations_of(call)
    assert described == {
        "options": f"the answer has more than {MAX_BYTES} bytes, the longest message of this server; "
        "ask for fewer inputs, hypotheses, alternatives or tokens at a time"
    }
    assert sum(num_steps) < 8 * 8 * 80 / 3, "the rest was not computed"
    await eventually(lambda: served.codes() == {("spell", "Translate", "INVALID_ARGUMENT"): 1.0})
    await eventually(lambda: served.num_accepted("spell") == 0)
    assert served.rejected("spell", "admission", "invalid") == 0, "work had begun"


async def test_an_answer_within_the_limit_is_sent_and_one_byte_more_is_not(tmp_path: Path) -> None:
    request = Request(model="spell", inputs=["12", "907"], options=Options(num_alternatives=20))
    prompt = generation_pb2.GenerateRequest(
        model="count", prompt="one", options=Options(max_tokens=20, min_tokens=20, num_alternatives=20)
    )
    models = one_version(tmp_path, "spell/1", "count/2")
    async with serving(models) as served:
        response = await served.translation.Translate(request)
        size = response.ByteSize()
        messages = [message async for message in served.generation.Generate(prompt)]
        last = messages[-1].ByteSize()
    assert len(response.translations[1].tokens) > 5
    assert min(size, last) > 1024, "the least limit that there is"
    async with serving(models, f"server.max_message_bytes={size}") as served:
        assert await served.translation.Translate(request) == response
    async with serving(models, f"server.max_message_bytes={size - 1}") as served:
        assert "options" in await violations_of(served.translation.Translate(request))
        await eventually(lambda: served.codes() == {("spell", "Translate", "INVALID_ARGUMENT"): 1.0})
    async with serving(models, f"server.max_message_bytes={last - 1}") as served:
        assert "options" in await violations_of(served.generation.Generate(prompt))


async def test_other_answers_of_a_stream_do_not_count(served: Served) -> None:
    options = Options(num_alternatives=20, max_tokens=20)
    request = Request(model="spell", inputs=["12345"] * 8, options=options)
    stream = served.translation.StreamTranslate(request)
    assert sum([message.ByteSize() async for message in stream]) > MAX_BYTES
    error = await error_of(served.translation.Translate(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_least_that_is_counted_is_never_more_than_what_is_sent(tmp_path: Path) -> None:
    async with serving(one_version(tmp_path, "spell/1")) as served:
        taken: list[Decoded] = []
        engine = served.model("spell").engine
        vocabulary_size = engine.facts.vocabulary_size
        source = served.model("spell").tokenizer.encode("907").ids
        for options in (
            {"num_alternatives": 0},
            {"num_alternatives": 5, "beam_size": 4, "num_hypotheses": 3, "min_tokens": 20},
            {"num_alternatives": 20, "temperature": 3.0, "min_tokens": 5, "seed": 4},
        ):
            finished = await engine.submit(source, DecodingParameters(max_tokens=40, **options)).result()
            taken.append(finished)
            least = least_bytes(DecodingParameters(max_tokens=40, **options), vocabulary_size)
            counted = AnswerRoom(0, lambda: None)
            counted.take(finished)
            sent = await served.translation.Translate(
                Request(model="spell", inputs=["907"], options=Options(max_tokens=40, **options))
            )
            assert 0 < least <= counted._num_bytes <= sent.ByteSize()
