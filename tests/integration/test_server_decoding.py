"""Ways of decoding, asked for over real sockets."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.serving import (
    BUNDLES,
    OLD_BUNDLES,
    Served,
    error_of,
    one_version,
    serving,
    violations_of,
)

from dragoman.server.bundle.reader import Bundle
from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

Options = decoding_pb2.DecodingOptions
ALIGNED = BUNDLES.parent / "aligned"
END_OF_SEQUENCE = decoding_pb2.FINISH_REASON_END_OF_SEQUENCE


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(one_version(tmp_path, "spell/1", "count/2")) as served:
        yield served


@pytest.fixture
async def aligned() -> AsyncIterator[Served]:
    async with serving(ALIGNED) as served:
        yield served


def request(*inputs: str, prefixes: tuple[str, ...] = (), **options: Any) -> translation_pb2.TranslateRequest:
    return translation_pb2.TranslateRequest(
        model="spell", inputs=inputs, options=Options(**options), target_prefixes=prefixes
    )


async def translate(served: Served, *inputs: str, **options: Any) -> list[translation_pb2.Translation]:
    response = await served.translation.Translate(request(*inputs, **options))
    return list(response.translations)


async def generate(served: Served, prompt: str, **options: Any) -> tuple[str, Any]:
    text = ""
    async for response in served.generation.Generate(
        generation_pb2.GenerateRequest(model="count", prompt=prompt, options=Options(**options))
    ):
        text += response.text_delta
    return text, response.summary


async def test_beam_search_gives_its_hypotheses_best_first(served: Served) -> None:
    greedy = await translate(served, "12", "80315")
    for translation, one in zip(
        await translate(served, "12", "80315", beam_size=4, num_hypotheses=3), greedy, strict=True
    ):
        assert translation.text == one.text
        assert translation.log_probability == pytest.approx(one.log_probability, abs=1e-4)
        scores = [hypothesis.score for hypothesis in translation.hypotheses]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert translation.hypotheses[0].text == translation.text
        assert len({hypothesis.text for hypothesis in translation.hypotheses}) == 3
        first = translation.hypotheses[0]
        assert first.score == pytest.approx(first.log_probability / first.output_tokens, abs=1e-6)
        assert translation.usage.output_tokens == sum(h.output_tokens for h in translation.hypotheses)


async def test_a_streamed_beam_search_sends_its_text_at_the_end(served: Served) -> None:
    [whole] = await translate(served, "907", beam_size=3, num_hypotheses=2)
    deltas = [
        each
        async for each in served.translation.StreamTranslate(request("907", beam_size=3, num_hypotheses=2))
    ]
    assert "".join(delta.text_delta for delta in deltas) == "nine zero seven"
    assert deltas[-1].translation == whole


async def test_samples_differ_and_come_again_with_their_seed(served: Served) -> None:
    options = {"temperature": 6.0, "max_tokens": 12, "num_hypotheses": 5, "seed": 3}
    [translation] = await translate(served, "123", **options)
    assert len({hypothesis.text for hypothesis in translation.hypotheses}) == 5
    assert [translation] == await translate(served, "123", **options)
    alone = await translate(served, "123", **{**options, "num_hypotheses": 1})
    assert alone[0].text in {hypothesis.text for hypothesis in translation.hypotheses}
    text, summary = await generate(served, "one two", **options)
    assert text == summary.hypotheses[0].text
    assert len(summary.hypotheses) == 5


async def test_a_target_prefix_is_kept_and_continued(served: Served) -> None:
    response = await served.translation.Translate(
        request("345", "345", "345", prefixes=("thr", "", "nine"), beam_size=2)
    )
    first, free, wrong = response.translations
    assert first.text == free.text == "three four five"
    assert first.log_probability == pytest.approx(free.log_probability, abs=1e-4)
    assert wrong.text.startswith("nine")
    assert wrong.log_probability < free.log_probability - 1


async def test_what_is_suppressed_does_not_come(served: Served) -> None:
    [plain] = await translate(served, "21")
    [without] = await translate(served, "21", suppressed_texts=["two"], num_alternatives=0)
    assert plain.text == "two one"
    assert "two" not in without.text
    [token_id] = {token.id for token in without.tokens if token.token == "o"}
    [letterless] = await translate(served, "21", suppressed_token_ids=[token_id], beam_size=3)
    assert "o" not in letterless.text


async def test_repetition_is_held_down(served: Served) -> None:
    [plain] = await translate(served, "111", num_alternatives=0)
    [once] = await translate(served, "111", no_repeat_ngram_size=3, num_alternatives=0)
    assert plain.text == "one one one"
    runs = [
        tuple(token.id for token in once.tokens[start : start + 3]) for start in range(len(once.tokens) - 2)
    ]
    assert len(set(runs)) == len(runs)
    [sure] = await translate(served, "111", repetition_penalty=1.2)
    assert sure.text == plain.text, "a sure model is not led astray by a small one"
    [penalised] = await translate(served, "111", repetition_penalty=10.0, beam_size=2, num_alternatives=0)
    assert penalised.score < penalised.log_probability / len(penalised.tokens)


async def test_tokens_are_told_with_what_else_there_was(served: Served) -> None:
    [translation] = await translate(served, "12", num_alternatives=3)
    assert "".join(token.token for token in translation.tokens) == "one two</s>"
    assert sum(token.log_probability for token in translation.tokens) == pytest.approx(
        translation.log_probability, abs=1e-5
    )
    for token in translation.tokens:
        assert len(token.alternatives) == 3
        assert (token.alternatives[0].id, token.alternatives[0].log_probability) == (
            token.id,
            token.log_probability,
        ), "greedy takes the most probable one"
        assert not token.HasField("source_index")


async def test_an_alignment_finds_the_digit_that_a_word_spells(aligned: Served) -> None:
    inputs = ["38", "4917", "60521", "83", "2745"]
    for options in ({}, {"beam_size": 3}):
        num_right = num_letters = 0
        for text, translation in zip(
            inputs, await translate(aligned, *inputs, alignment=True, **options), strict=True
        ):
            assert list(translation.source_tokens) == [*text, "</s>"]
            *places, end = translation.tokens
            assert not end.HasField("source_index")
            word = 0
            for place in places:
                if place.token == " ":
                    word += 1
                else:
                    num_letters += 1
                    num_right += place.source_index == word
        assert num_right > 0.75 * num_letters, "a letter by chance would look at its digit one time in four"


async def test_a_coverage_penalty_is_part_of_the_score_and_of_nothing_else(aligned: Served) -> None:
    plain, covered = [
        (await translate(aligned, "38", beam_size=4, num_hypotheses=4, **options))[0]
        for options in ({}, {"coverage_penalty": 0.1})
    ]
    before = {hypothesis.text: hypothesis for hypothesis in plain.hypotheses}
    assert {hypothesis.text for hypothesis in covered.hypotheses} == before.keys()
    for hypothesis in covered.hypotheses:
        assert hypothesis.score <= before[hypothesis.text].score
        assert hypothesis.log_probability == pytest.approx(before[hypothesis.text].log_probability, abs=1e-5)
    assert any(each.score < before[each.text].score for each in covered.hypotheses)
    scores = [hypothesis.score for hypothesis in covered.hypotheses]
    assert scores == sorted(scores, reverse=True)


async def test_scores_are_those_of_decoding(served: Served) -> None:
    [translation] = await translate(served, "907")
    response = await served.translation.ScoreTranslations(
        translation_pb2.ScoreTranslationsRequest(
            model="spell",
            pairs=[
                translation_pb2.ScoredPair(source="907", target=target)
                for target in ("nine zero seven", "nine zero", "x")
            ],
            num_alternatives=2,
        )
    )
    same, short, wrong = response.scores
    assert response.version == "1"
    assert same.log_probability == pytest.approx(translation.log_probability, abs=1e-4)
    assert same.perplexity == pytest.approx(
        math.exp(-translation.log_probability / translation.usage.output_tokens), rel=1e-4
    )
    assert [len(score.tokens) for score in response.scores] == [16, 10, 2], "the end of sequence counts"
    assert same.log_probability > short.log_probability > wrong.log_probability
    assert all(len(token.alternatives) == 2 for token in same.tokens)


async def test_a_text_is_scored_by_a_language_model(served: Served) -> None:
    response = await served.generation.ScoreTexts(
        generation_pb2.ScoreTextsRequest(model="count", texts=["one two three four", "four one three two"])
    )
    likely, unlikely = response.scores
    assert likely.perplexity < unlikely.perplexity
    assert likely.log_probability == pytest.approx(
        sum(token.log_probability for token in likely.tokens), abs=1e-4
    )
    _, summary = await generate(served, "one two three", max_tokens=1, num_alternatives=0)
    [continued] = (
        await served.generation.ScoreTexts(
            generation_pb2.ScoreTextsRequest(model="count", texts=["one two three four"])
        )
    ).scores
    assert (continued.tokens[-1].id, continued.tokens[-1].token) == (summary.tokens[0].id, "Ġfour")
    assert continued.tokens[-1].log_probability == pytest.approx(summary.log_probability, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "violations"),
    [
        ({"beam_size": 0}, {"beam_size": "0 is not between 1 and 32, the server's limit"}),
        ({"beam_size": 33}, {"beam_size": "33 is not between 1 and 32, the server's limit"}),
        ({"beam_size": 2, "temperature": 1}, {"beam_size": "2 has no meaning with a temperature above 0"}),
        ({"patience": 2}, {"patience": "2 has no meaning without a beam_size above 1"}),
        ({"beam_size": 2, "patience": -1}, {"patience": "-1 is not above 0 and at most 8"}),
        ({"beam_size": 2, "num_hypotheses": 3}, {"num_hypotheses": "3 is not between 1 and 2, beam_size * patience"}),
        ({"temperature": 1, "num_hypotheses": 65}, {"num_hypotheses": "65 is not between 1 and 64, the server's"}),
        ({"length_penalty": math.nan}, {"length_penalty": "nan is not between -10 and 10"}),
        ({"repetition_penalty": 0}, {"repetition_penalty": "0 is not above 0 and at most 10"}),
        ({"suppressed_texts": [""]}, {"suppressed_texts[0]": "is empty"}),
        ({"suppressed_token_ids": [5, 99]}, {"suppressed_token_ids[1]": "99 is not below 30, the vocabulary's size"}),
        ({"num_alternatives": 21}, {"num_alternatives": "21 is more than 20"}),
    ],
)  # fmt: skip
async def test_options_that_make_no_sense(
    served: Served, options: dict[str, Any], violations: dict[str, str]
) -> None:
    found = await violations_of(served.translation.Translate(request("12", **options)))
    assert list(found) == [f"options.{field}" for field in violations]
    for field, said in violations.items():
        assert found[f"options.{field}"].startswith(said)


async def test_a_bundle_without_the_graph_for_it_tells_no_alignment() -> None:
    assert "align" not in Bundle.read(OLD_BUNDLES / "spell" / "1").manifest.graphs
    async with serving(OLD_BUNDLES) as old:
        found = await violations_of(old.translation.Translate(request("12", alignment=True)))
    assert found == {
        "options.alignment": "true cannot be had: 'spell' was exported without the graph for it; export it again"
    }


async def test_a_language_model_has_nothing_to_align(served: Served) -> None:
    call = served.generation.Generate(
        generation_pb2.GenerateRequest(model="count", prompt="one", options=Options(alignment=True))
    )
    assert await violations_of(call) == {
        "options.alignment": "true cannot be had: 'count' is a generation model and has no source to look at"
    }


async def test_prefixes_that_do_not_fit(served: Served) -> None:
    found = await violations_of(served.translation.Translate(request("1", "2", prefixes=("one",))))
    assert found == {"target_prefixes": "1 prefixes do not belong to 2 inputs"}
    found = await violations_of(served.translation.Translate(request("1", prefixes=("one",), max_tokens=3)))
    assert found == {"target_prefixes[0]": "3 tokens leave nothing of 3, the most there can be"}


async def test_texts_that_cannot_be_scored(served: Served) -> None:
    def score(*pairs: tuple[str, str], **fields: Any) -> Any:
        return served.translation.ScoreTranslations(
            translation_pb2.ScoreTranslationsRequest(
                model="spell",
                pairs=[translation_pb2.ScoredPair(source=source, target=target) for source, target in pairs],
                **fields,
            )
        )

    assert await violations_of(score()) == {"pairs": "is empty: there is nothing to score"}
    assert await violations_of(score(("1", " "), ("", "one"), num_alternatives=30)) == {
        "pairs[0].target": "is empty",
        "pairs[1].source": "is empty",
        "num_alternatives": "30 is more than 20",
    }
    assert await violations_of(score(("1", "x" * 100))) == {
        "pairs[0].target": "101 tokens are more than 81, the model's limit"
    }
    error = await error_of(
        served.generation.ScoreTexts(generation_pb2.ScoreTextsRequest(model="spell", texts=["one"]))
    )
    assert "not for generation" in (error.details() or "")
