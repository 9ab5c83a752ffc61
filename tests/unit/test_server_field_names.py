"""A refusal names the fields of the message that the caller sent."""

from typing import Any

import pytest

from dragoman.server.errors import MAX_LISTED, AnswerTooLarge, FieldViolation, InvalidRequest
from dragoman.server.fronts.grpc.dragoman_v1.fields import naming_fields
from dragoman.server.fronts.grpc.dragoman_v1.generation import GenerationServicer
from dragoman.server.fronts.grpc.dragoman_v1.translation import TranslationServicer
from dragoman.v1.generation_pb2 import GenerateRequest, ScoreTextsRequest
from dragoman.v1.translation_pb2 import ScoreTranslationsRequest, TranslateRequest


class Refusing:
    """A runtime that refuses every call for these fields."""

    max_message_bytes = None

    def __init__(self, *fields: str) -> None:
        self.fields = fields

    async def answer(self, *_: object, **__: object) -> None:
        raise InvalidRequest([FieldViolation(field, "is odd") for field in self.fields])

    stream = score = answer


class Context:
    def time_remaining(self) -> None:
        return None


@pytest.mark.parametrize(
    ("servicer", "method", "request_", "fields", "named"),
    [
        (TranslationServicer, "Translate", TranslateRequest(), "inputs", "inputs"),
        (TranslationServicer, "Translate", TranslateRequest(), "inputs[12]", "inputs[12]"),
        (TranslationServicer, "Translate", TranslateRequest(), "prefixes", "target_prefixes"),
        (TranslationServicer, "StreamTranslate", TranslateRequest(), "prefixes[3]", "target_prefixes[3]"),
        (TranslationServicer, "Translate", TranslateRequest(), "options.stop[3]", "options.stop[3]"),
        (TranslationServicer, "Translate", TranslateRequest(), "model", "model"),
        (TranslationServicer, "ScoreTranslations", ScoreTranslationsRequest(), "texts", "pairs"),
        (TranslationServicer, "ScoreTranslations", ScoreTranslationsRequest(), "texts[1]", "pairs[1].target"),
        (
            TranslationServicer,
            "ScoreTranslations",
            ScoreTranslationsRequest(),
            "sources[7]",
            "pairs[7].source",
        ),
        (GenerationServicer, "Generate", GenerateRequest(), "inputs", "prompt"),
        (GenerationServicer, "Generate", GenerateRequest(), "inputs[0]", "prompt"),
        (GenerationServicer, "ScoreTexts", ScoreTextsRequest(), "sources[2]", "texts[2]"),
        (GenerationServicer, "ScoreTexts", ScoreTextsRequest(), "num_alternatives", "num_alternatives"),
    ],
)
async def test_names_of_dragoman_v1(
    servicer: Any, method: str, request_: Any, fields: str, named: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await getattr(servicer(Refusing(fields)), method)(request_, Context())
    assert [violation.field for violation in caught.value.violations] == [named]
    assert str(caught.value) == f"{named}: is odd"


async def test_what_is_too_much_to_be_listed_is_counted_under_the_new_names() -> None:
    @naming_fields(texts="pairs[{}]" + ".target" * 100)
    async def refuse(*_: object) -> None:
        raise InvalidRequest([FieldViolation(f"texts[{index}]", "is odd") for index in range(50)])

    with pytest.raises(InvalidRequest) as caught:
        await refuse(None, None, None)
    num_listed = len(caught.value.violations)
    assert 1 <= num_listed < MAX_LISTED, "longer names leave room for fewer"
    assert str(caught.value).endswith(f"and {50 - num_listed} more")


async def test_an_error_keeps_its_kind() -> None:
    @naming_fields(inputs="prompt")
    async def refuse(*_: object) -> None:
        raise AnswerTooLarge(7)

    with pytest.raises(AnswerTooLarge, match="options: the answer has more than 7 bytes"):
        await refuse(None, None, None)
