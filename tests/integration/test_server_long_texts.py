"""A text that the model cannot take is refused by its characters, before anything is made of it."""

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.integration.serving import Served, eventually, one_version, serving, violations_of

from dragoman.server.requests.runtime import Runtime
from dragoman.server.requests.tokenization import Tokenising
from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

ENDLESS = "1" * 500_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(one_version(tmp_path, "spell/1", "count/2")) as served:
        yield served


@pytest.fixture
def never_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def encode(*_: Any, **__: Any) -> Sequence[Any]:
        raise AssertionError("it is not worth it")

    monkeypatch.setattr(Tokenising, "encode", encode)


@pytest.mark.usefixtures("never_tokenised")
async def test_every_text_of_a_call_is_bounded_in_characters(served: Served) -> None:
    said = "500000 characters are more than {}: the model's limit is {} tokens"
    translation, generation = served.translation, served.generation
    request = translation_pb2.TranslateRequest(
        model="spell", inputs=["1", ENDLESS], target_prefixes=[ENDLESS, ""]
    )
    texts = {"inputs[1]": said.format(128, 32), "target_prefixes[0]": said.format(324, 81)}
    assert await violations_of(translation.Translate(request)) == texts
    assert await violations_of(translation.StreamTranslate(request)) == texts
    pairs = [translation_pb2.ScoredPair(source=ENDLESS, target=ENDLESS)]
    scored = translation_pb2.ScoreTranslationsRequest(model="spell", pairs=pairs)
    assert await violations_of(translation.ScoreTranslations(scored)) == {
        "pairs[0].source": said.format(128, 32),
        "pairs[0].target": said.format(324, 81),
    }
    longest = served.model("count").max_characters_per_token
    prompt = generation_pb2.GenerateRequest(model="count", prompt=ENDLESS)
    assert await violations_of(generation.Generate(prompt)) == {"prompt": said.format(255 * longest, 255)}
    texts_of_one = generation_pb2.ScoreTextsRequest(model="count", texts=[ENDLESS])
    assert await violations_of(generation.ScoreTexts(texts_of_one)) == {
        "texts[0]": said.format(256 * longest, 256)
    }


@pytest.mark.usefixtures("never_tokenised")
async def test_thousands_of_entries_are_refused_by_their_number(served: Served) -> None:
    options = decoding_pb2.DecodingOptions(suppressed_token_ids=[1] * 2_000, stop=[""] * 1_000)
    request = translation_pb2.TranslateRequest(
        model="spell", inputs=["1"], options=options, target_prefixes=[""] * 500
    )
    described = await violations_of(served.translation.Translate(request))
    assert described["target_prefixes"] == "500 prefixes do not belong to 1 inputs"
    assert described["options.suppressed_token_ids"] == "2000 tokens are more than 1024"
    assert described["options.stop"] == "1000 strings are more than 16"
    pairs = translation_pb2.ScoreTranslationsRequest(
        model="spell", pairs=[translation_pb2.ScoredPair()] * 5_000
    )
    assert await violations_of(served.translation.ScoreTranslations(pairs)) == {
        "pairs": "5000 are more than 128, the server's limit"
    }


async def test_millions_of_entries_are_refused_before_they_are_parsed(served: Served) -> None:
    options = decoding_pb2.DecodingOptions(suppressed_token_ids=[1] * 1_000_000, stop=[""] * 1_000_000)
    request = translation_pb2.TranslateRequest(model="spell", inputs=["1"], options=options)
    pairs = translation_pb2.ScoreTranslationsRequest(
        model="spell", pairs=[translation_pb2.ScoredPair()] * 500_000
    )
    for call in (served.translation.Translate(request), served.translation.ScoreTranslations(pairs)):
        described = await violations_of(call)
        assert re.fullmatch(r"the message has more than \d+ entries, .*is 128 inputs", described[""])


async def test_a_deadline_that_passes_before_texts_are_tokenised_is_counted(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Runtime._prepare

    async def late(self: Runtime, model: Any, call: Any) -> Any:
        object.__setattr__(call, "deadline_s", 0.0)
        return await prepare(self, model, call)

    monkeypatch.setattr(Runtime, "_prepare", late)
    request = translation_pb2.TranslateRequest(model="spell", inputs=["1" * 32] * 100)
    with pytest.raises(Exception, match="before the call's texts were tokenised"):
        await served.translation.Translate(request)
    await eventually(lambda: served.codes() == {("spell", "Translate", "DEADLINE_EXCEEDED"): 1.0})
    assert served.rejected("spell", "admission", "deadline") == 1


async def test_few_of_many_unknown_characters_are_looked_up_and_named(served: Served) -> None:
    unknown = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    request = translation_pb2.TranslateRequest(
        model="spell", inputs=["1"] * 100, target_prefixes=[unknown] * 100
    )
    described = await violations_of(served.translation.Translate(request))
    said = described["target_prefixes[0]"]
    assert said.endswith("lacks: '\u4e00' (U+4E00), '\u4e01' (U+4E01), '\u4e02' (U+4E02), and more")
    assert 5 < len(described) < 20, "gRPC refuses longer statuses, as RESOURCE_EXHAUSTED"
