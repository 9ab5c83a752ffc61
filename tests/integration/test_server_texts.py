"""Texts over real sockets: cleaned as training cleaned them, kept out where that is asked for, refused by name."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.serving import Served, one_version, serving, violations_of
from tests.integration.test_server_decoding import Options, generate, request, translate

from dragoman.v1 import generation_pb2, translation_pb2


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(one_version(tmp_path, "spell/2", "count/2")) as served:
        yield served


@pytest.mark.parametrize(
    "dirty", ["\ufeff21", "2\x001", "\x1b21\x07", "21\x85", "2\u200b1\u202e", "21\u00a0"]
)
async def test_what_nobody_sees_changes_no_answer(served: Served, dirty: str) -> None:
    [plain] = await translate(served, "21" if dirty[-1] not in "\x85\u00a0" else "21 ", num_alternatives=1)
    [answer] = await translate(served, dirty, num_alternatives=1)
    assert answer == plain


@pytest.mark.parametrize("blank", ["\x00\x07", "\ufeff", "\u00a0\u2028\x85", "\u200b", " \t\n"])
async def test_a_text_of_nothing_to_see_is_empty(served: Served, blank: str) -> None:
    assert await violations_of(served.translation.Translate(request("12", blank))) == {
        "inputs[1]": "is empty"
    }
    pair = translation_pb2.ScoredPair(source="12", target=blank)
    scoring = translation_pb2.ScoreTranslationsRequest(model="spell", pairs=[pair])
    assert await violations_of(served.translation.ScoreTranslations(scoring)) == {
        "pairs[0].target": "is empty"
    }


async def test_a_language_model_takes_white_space_and_scores_it(served: Served) -> None:
    text, _ = await generate(served, " ", max_tokens=3)
    assert text
    [blank, no_break] = (
        await served.generation.ScoreTexts(
            generation_pb2.ScoreTextsRequest(model="count", texts=[" ", "\ufeff \x00"])
        )
    ).scores
    assert blank == no_break
    assert blank.log_probability < 0
    scoring = generation_pb2.ScoreTextsRequest(model="count", texts=["one", "\x00\ufeff"])
    assert await violations_of(served.generation.ScoreTexts(scoring)) == {"texts[1]": "is empty"}


async def test_a_suppressed_text_is_not_there_within_a_word_either(served: Served) -> None:
    [plain] = await translate(served, "2148")
    assert plain.text == "two one four eight"
    for text in ("w", "wo o", " ", "ei", "r e"):
        [searched] = await translate(served, "2148", suppressed_texts=[text], beam_size=3, num_hypotheses=3)
        [greedy] = await translate(served, "2148", suppressed_texts=[text])
        [drawn] = await translate(served, "2148", suppressed_texts=[text], temperature=1.0, seed=4)
        texts = [greedy.text, drawn.text, *(each.text for each in searched.hypotheses)]
        assert not any(text in each for each in texts), (text, texts)
    generated, _ = await generate(served, "one two", max_tokens=12)
    for text in ("hr", "e f", " ", generated[3:9]):
        without, _ = await generate(served, "one two", max_tokens=12, suppressed_texts=[text])
        assert text not in without


async def test_option_texts_are_cleaned_as_outputs_are(served: Served) -> None:
    [plain] = await translate(served, "2148", stop=[" four"])
    [stopped] = await translate(served, "2148", stop=["\u00a0fo\x00ur"])
    assert plain == stopped
    assert plain.text == "two one"
    found = await violations_of(
        served.translation.Translate(request("12", stop=["x", "\x00"], suppressed_texts=["\ufeff"]))
    )
    assert found == {
        "options.stop[1]": r"'\x00' holds only characters that are removed from every text",
        "options.suppressed_texts[0]": r"'\ufeff' holds only characters that are removed from every text",
    }


async def test_a_suppressed_text_that_cannot_be_kept_out_is_named(served: Served) -> None:
    call = served.generation.Generate(
        generation_pb2.GenerateRequest(
            model="count",
            prompt="one",
            options=Options(suppressed_texts=["ok", "a\N{REPLACEMENT CHARACTER}"]),
        )
    )
    found = await violations_of(call)
    assert list(found) == ["options.suppressed_texts[1]"]
    assert "U+FFFD, which stands for any bytes" in found["options.suppressed_texts[1]"]


async def test_a_prefix_is_kept_whole_or_refused(served: Served) -> None:
    found = await violations_of(
        served.translation.Translate(request("1", "2", prefixes=("tΩwo Δ", "tw"), suppressed_texts=["w"]))
    )
    assert found == {
        "target_prefixes[0]": "'tΩwo Δ' holds what the model's vocabulary lacks: 'Ω' (U+03A9), 'Δ' (U+0394)",
        "target_prefixes[1]": "'tw' holds 'w', which options.suppressed_texts forbid",
    }
    [answer] = await served_prefix(served, "\ufefftwo\x00")
    assert answer.text.startswith("two")


async def served_prefix(served: Served, prefix: str) -> list[translation_pb2.Translation]:
    response = await served.translation.Translate(request("21", prefixes=(prefix,)))
    return list(response.translations)
