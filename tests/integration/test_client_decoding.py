"""Decoding options, hypotheses, tokens and scores through both clients: scripted, then by a real server."""

import math
from collections.abc import Iterator

import pytest
from tests.integration.scripted_server import ScriptedServer, overloaded, running_server
from tests.integration.serving import BUNDLES, serving

from dragoman.client import (
    AsyncClient,
    Client,
    FinishReason,
    Hypothesis,
    OutputToken,
    OverloadedError,
    TextScore,
    TokenAlternative,
)
from dragoman.client.channel import ChannelSettings
from dragoman.common.errors import UsageError


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.target, timeout_s=10) as blocking:
        yield blocking


def test_every_option_reaches_the_server(client: Client, server: ScriptedServer) -> None:
    client.translate(
        "un",
        model="dates",
        beam_size=4,
        num_hypotheses=2,
        length_penalty=0.5,
        coverage_penalty=0.25,
        patience=2.0,
        repetition_penalty=1.5,
        no_repeat_ngram_size=3,
        suppressed_texts="zwei",
        suppressed_token_ids=[7, 8],
        num_alternatives=0,
        alignment=True,
    )
    options = server.script.requests[0].options
    assert {field.name: value for field, value in options.ListFields()} == {
        "beam_size": 4,
        "num_hypotheses": 2,
        "length_penalty": 0.5,
        "coverage_penalty": 0.25,
        "patience": 2.0,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 3,
        "suppressed_texts": ["zwei"],
        "suppressed_token_ids": [7, 8],
        "num_alternatives": 0,
        "alignment": True,
    }


def test_hypotheses_are_plain_data_best_first(client: Client) -> None:
    [answer] = client.translate("un", model="dates", num_hypotheses=2)
    assert answer.hypotheses == (
        Hypothesis("UN", FinishReason.END_OF_SEQUENCE, 3, -0.25, -0.125),
        Hypothesis("UN!", FinishReason.END_OF_SEQUENCE, 4, -1.25, -1.125),
    )
    generation = client.generate("a", model="stdlib", num_hypotheses=2)
    assert "".join(generation) == "aé "
    assert [hypothesis.text for hypothesis in generation.summary.hypotheses] == ["aé ", "aé !"]
    assert generation.summary.score == -0.5


def test_tokens_come_with_alternatives_and_the_place_they_look_at(client: Client) -> None:
    [answer] = client.translate("ab", model="dates", num_alternatives=2, alignment=True)
    assert answer.source_tokens == ("a", "b")
    assert answer.tokens[1] == OutputToken(
        id=66,
        token="B",
        log_probability=-0.5,
        alternatives=(TokenAlternative(66, "B", -0.5), TokenAlternative(67, "C", -1.5)),
        source_index=1,
    )
    [plain] = client.translate("ab", model="dates", num_alternatives=0)
    assert [(token.alternatives, token.source_index) for token in plain.tokens] == [((), None)] * 2


def test_each_text_has_its_own_prefix(client: Client, server: ScriptedServer) -> None:
    answers = client.translate(["un", "deux"], model="dates", target_prefixes=["", ">"])
    assert [answer.text for answer in answers] == ["UN", ">DEUX"]
    assert client.translate("un", model="dates", target_prefixes=">")[0].text == ">UN"
    list(client.stream_translate("un", model="dates", target_prefixes=">", beam_size=2))
    assert list(server.script.requests[-1].target_prefixes) == [">"]
    assert server.script.requests[-1].options.beam_size == 2


def test_scores_come_in_the_order_of_the_pairs(client: Client, server: ScriptedServer) -> None:
    one, two = client.score_translations(["un", "deux"], ["A", "BC"], model="dates", num_alternatives=1)
    assert one.perplexity == pytest.approx(math.exp(0.5))
    assert one == TextScore(
        log_probability=-0.5,
        perplexity=one.perplexity,
        tokens=(OutputToken(65, "A", -0.5, (TokenAlternative(65, "A", -0.5),)),),
        version="3",
    )
    assert two.log_probability == -1.0
    request = server.script.requests[0]
    assert [(pair.source, pair.target) for pair in request.pairs] == [("un", "A"), ("deux", "BC")]
    assert client.score_translations("un", "A", model="dates")[0].log_probability == -0.5


def test_texts_are_scored_by_a_model_that_generates(client: Client) -> None:
    scores = client.score_texts(["abc", "d"], model="stdlib")
    assert [(score.log_probability, len(score.tokens), score.version) for score in scores] == [
        (-1.5, 3, "1"),
        (-0.5, 1, "1"),
    ]


def test_scoring_is_tried_again_as_every_call_is(client: Client, server: ScriptedServer) -> None:
    server.script.failures.extend([overloaded(0.05), overloaded(0.05)])
    assert client.score_texts("abc", model="stdlib")
    assert len(server.script.requests) == 3
    server.script.failures.append(overloaded(0.05))
    with (
        Client(server.target, settings=ChannelSettings(max_attempts=1)) as impatient,
        pytest.raises(OverloadedError),
    ):
        impatient.score_translations("un", "A", model="dates")


def test_sources_without_targets_are_no_pairs(client: Client, server: ScriptedServer) -> None:
    with pytest.raises(UsageError, match="2 sources and 1 targets are no pairs"):
        client.score_translations(["un", "deux"], ["A"], model="dates")
    assert server.script.requests == []


async def test_the_asyncio_client_has_the_same(server: ScriptedServer) -> None:
    async with AsyncClient(server.target, timeout_s=10) as client:
        [answer] = await client.translate("un", model="dates", target_prefixes=">", num_hypotheses=2)
        assert [hypothesis.text for hypothesis in answer.hypotheses] == [">UN", ">UN!"]
        pieces = [
            piece async for piece in client.stream_translate("un", model="dates", target_prefixes=[">"])
        ]
        assert pieces[-1].translation
        assert list(server.script.requests[-1].target_prefixes) == [">"]
        [score] = await client.score_translations("un", "A", model="dates", num_alternatives=1)
        assert (score.log_probability, len(score.tokens[0].alternatives)) == (-0.5, 1)
        [score] = await client.score_texts("abc", model="stdlib", num_alternatives=1)
        assert (score.log_probability, len(score.tokens[0].alternatives)) == (-1.5, 1)


async def test_a_real_server_decodes_scores_and_aligns_as_it_is_asked() -> None:
    async with (
        serving(BUNDLES.parent / "aligned") as served,
        AsyncClient(f"127.0.0.1:{served.server.port}", timeout_s=20) as client,
    ):
        [best] = await client.translate("12", model="spell", beam_size=4, num_hypotheses=3)
        assert (best.text, len(best.hypotheses)) == ("one two", 3)
        assert best.hypotheses[0].score == best.score
        assert [each.score for each in best.hypotheses] == sorted(
            (each.score for each in best.hypotheses), reverse=True
        )
        forced = await client.translate(["12", "12"], model="spell", target_prefixes=["", "nine"])
        assert forced[0].text == "one two"
        assert forced[1].text.startswith("nine")
        for answer in (best, forced[1]):
            [score] = await client.score_translations("12", answer.text, model="spell")
            assert score.log_probability == pytest.approx(answer.log_probability, abs=1e-4)
        [aligned] = await client.translate("12", model="spell", alignment=True, num_alternatives=2)
        assert aligned.source_tokens[:2] == ("1", "2")
        assert [aligned.tokens[place].source_index for place in (0, 4, -1)] == [0, 1, None]
        assert all(len(token.alternatives) == 2 for token in aligned.tokens)
