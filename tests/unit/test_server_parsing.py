"""Messages before they are requests: small ones at once, large ones in turns and within a bound."""

import asyncio

import pytest

from dragoman.server.errors import InvalidRequest, Overloaded
from dragoman.server.fronts.grpc.parsing import Parsing
from dragoman.v1.decoding_pb2 import DecodingOptions
from dragoman.v1.translation_pb2 import ScoredPair, ScoreTranslationsRequest, TranslateRequest

TRANSLATE = TranslateRequest.DESCRIPTOR
SCORE = ScoreTranslationsRequest.DESCRIPTOR


async def test_the_largest_valid_calls_are_parsed() -> None:
    parsing = Parsing(max_inputs=128)
    texts = [f"{number} " * 500 for number in range(128)]
    options = DecodingOptions(
        stop=["s"] * 16, suppressed_texts=["t"] * 64, suppressed_token_ids=range(1024), max_tokens=3, seed=4
    )
    request = TranslateRequest(model="m", version="1", inputs=texts, options=options, target_prefixes=texts)
    assert await parsing.parse(TRANSLATE, TranslateRequest.FromString, request.SerializeToString()) == request
    pairs = [ScoredPair(source=text, target=text) for text in texts]
    scoring = ScoreTranslationsRequest(model="m", version="1", pairs=pairs, num_alternatives=3)
    message = scoring.SerializeToString()
    assert await parsing.parse(SCORE, ScoreTranslationsRequest.FromString, message) == scoring


async def test_a_message_with_too_many_entries_never_comes_to_the_parser() -> None:
    def parser(_: bytes) -> None:
        raise AssertionError("parsed")

    message = TranslateRequest(inputs=[""] * 20_000).SerializeToString()
    with pytest.raises(InvalidRequest, match=r"has more than 2512 entries.* limit is 128 inputs"):
        await Parsing(max_inputs=128).parse(TRANSLATE, parser, message)


async def test_large_messages_take_turns_with_all_else() -> None:
    parsing = Parsing(max_inputs=128)
    order: list[str] = []

    def parser(_: bytes) -> None:
        order.append("message")

    async def neighbour() -> None:
        while order.count("message") < 5:
            order.append("neighbour")
            await asyncio.sleep(0)

    message = TranslateRequest(inputs=["a" * 100_000]).SerializeToString()
    await asyncio.gather(neighbour(), *(parsing.parse(TRANSLATE, parser, message) for _ in range(5)))
    assert "message message" not in " ".join(order)


async def test_more_large_messages_than_the_bound_are_too_many_and_one_is_always_taken() -> None:
    parsing = Parsing(max_inputs=128)
    message = TranslateRequest(inputs=["a" * 40_000_000]).SerializeToString()
    results = await asyncio.gather(
        *(parsing.parse(TRANSLATE, len, message) for _ in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [int, Overloaded, Overloaded]
    beyond = message + message
    assert await parsing.parse(TRANSLATE, len, beyond) == len(beyond)
