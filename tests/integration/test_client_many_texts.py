"""More texts than one call takes: several calls, one answer, whatever the server's limits are."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tests.integration.scripted_server import Failure, ScriptedServer, invalid, running_server

from dragoman.client import (
    AsyncClient,
    CallCancelledError,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    ServerError,
)

Call = Callable[..., Any]
TEXTS = [f"text {number}" for number in range(300)]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running_server() as running:
        yield running


@pytest.fixture(params=["blocking", "asynchronous"])
def ask(request: pytest.FixtureRequest, server: ScriptedServer) -> Call:
    """Calls either client; a stream is read to its end."""

    async def blocking(call: str, *arguments: Any, **options: Any) -> Any:
        with Client(server.target, timeout_s=20) as client:
            answer = getattr(client, call)(*arguments, **options)
            return list(answer)

    async def asynchronous(call: str, *arguments: Any, **options: Any) -> Any:
        async with AsyncClient(server.target, timeout_s=20) as client:
            answer = getattr(client, call)(*arguments, **options)
            if hasattr(answer, "__anext__"):
                return [piece async for piece in answer]
            return await answer

    return blocking if request.param == "blocking" else asynchronous


def sizes(server: ScriptedServer) -> list[int]:
    return [len(texts_of(request)) for request in server.script.requests]


def texts_of(request: Any) -> Any:
    return next(getattr(request, name) for name in ("inputs", "pairs", "texts") if hasattr(request, name))


def at_most(limit: int) -> Callable[[Any], Failure | None]:
    """Refuses a call of more texts, as a server does."""

    def judge(request: Any) -> Failure | None:
        texts = texts_of(request)
        name = next(name for name in ("inputs", "pairs", "texts") if hasattr(request, name))
        too_many = f"{len(texts)} are more than {limit}, the server's limit"
        return invalid(name, too_many) if len(texts) > limit else None

    return judge


async def test_many_texts_are_translated_in_several_calls(ask: Call, server: ScriptedServer) -> None:
    answers = await ask("translate", TEXTS, model="dates", seed=2**64 - 100, temperature=1.0)
    assert [answer.text for answer in answers] == [text.upper() for text in TEXTS]
    assert sizes(server) == [128, 128, 44]
    # Input number i of a call is drawn with seed + i.
    assert [request.options.seed for request in server.script.requests] == [2**64 - 100, 28, 156]


async def test_prefixes_stay_with_their_texts(ask: Call, server: ScriptedServer) -> None:
    prefixes = [f"{number}:" for number in range(300)]
    answers = await ask("translate", TEXTS, model="dates", target_prefixes=prefixes)
    assert [answer.text for answer in answers] == [
        prefix + text.upper() for prefix, text in zip(prefixes, TEXTS, strict=True)
    ]


async def test_many_texts_are_streamed_in_several_calls(ask: Call, server: ScriptedServer) -> None:
    pieces = await ask("stream_translate", TEXTS, model="dates")
    whole = {piece.index: piece.translation for piece in pieces if piece.translation}
    assert [whole[index].text for index in range(300)] == [text.upper() for text in TEXTS]
    assert {answer.version for answer in whole.values()} == {"3"}
    told = ["".join(piece.text for piece in pieces if piece.index == index) for index in (0, 150, 299)]
    assert told == ["TEXT 0", "TEXT 150", "TEXT 299"]
    assert sizes(server) == [128, 128, 44]


@pytest.mark.parametrize(
    ("call", "arguments"), [("score_translations", (TEXTS, TEXTS)), ("score_texts", (TEXTS,))]
)
async def test_many_texts_are_scored_in_several_calls(
    ask: Call, server: ScriptedServer, call: str, arguments: Any
) -> None:
    scores = await ask(call, *arguments, model="dates")
    assert [score.log_probability for score in scores] == [-0.5 * len(text) for text in TEXTS]
    assert sizes(server) == [128, 128, 44]


@pytest.mark.parametrize("call", ["translate", "stream_translate", "score_texts"])
async def test_a_server_that_takes_fewer_gets_fewer(ask: Call, server: ScriptedServer, call: str) -> None:
    server.script.refuse = at_most(50)
    answers = await ask(call, TEXTS[:100], model="dates")
    if call == "stream_translate":
        answers = [piece for piece in answers if piece.translation]
    assert len(answers) == 100
    assert sizes(server) == [100, 50, 50]


@pytest.mark.parametrize("call", ["translate", "stream_translate"])
async def test_answers_that_are_too_large_together_come_in_several_calls(
    ask: Call, server: ScriptedServer, call: str
) -> None:
    server.script.refuse = lambda request: (
        invalid("options", "the answer has more than 4194304 bytes") if len(request.inputs) > 30 else None
    )
    answers = await ask(call, TEXTS[:100], model="dates")
    assert len([answer for answer in answers if getattr(answer, "translation", True)]) == 100
    assert sizes(server) == [100, 50, 25, 25, 25, 25]


async def test_a_stream_that_has_begun_does_not_begin_again(ask: Call, server: ScriptedServer) -> None:
    server.script.fail_after = invalid("options", "the answer has more than 4194304 bytes")
    with pytest.raises(InvalidRequestError, match="4194304"):
        await ask("stream_translate", TEXTS[:10], model="dates")
    assert sizes(server) == [10]


def test_a_stream_that_failed_or_was_closed_has_no_more_pieces(server: ScriptedServer) -> None:
    server.script.failures.extend([Failure(grpc.StatusCode.INTERNAL)])
    with Client(server.target) as client:
        stream = client.stream_translate(TEXTS, model="dates")
        with pytest.raises(ServerError):
            next(stream)
        with pytest.raises(ServerError):  # as any stream of gRPC's
            next(stream)
        closed = client.stream_translate(TEXTS, model="dates")
        next(closed)
        closed.close()
        with contextlib.suppress(CallCancelledError):  # the first call may have ended already
            list(closed)
    assert sizes(server) == [128, 128], "the texts after those that failed were not asked for"


async def test_an_asynchronous_stream_that_failed_has_no_more_pieces(server: ScriptedServer) -> None:
    server.script.failures.extend([Failure(grpc.StatusCode.INTERNAL)])
    async with AsyncClient(server.target) as client:
        stream = client.stream_translate(TEXTS, model="dates")
        with pytest.raises(ServerError):
            await anext(stream)
        assert [piece async for piece in stream] == []
    assert sizes(server) == [128], "the texts after those that failed were not asked for"


def test_what_a_server_takes_is_remembered(server: ScriptedServer) -> None:
    server.script.refuse = at_most(40)
    with Client(server.target) as client:
        client.translate(TEXTS[:100], model="dates")
        assert sizes(server) == [100, 50, 25, 25, 25, 25]
        server.script.requests.clear()
        client.translate(TEXTS[:60], model="dates")
        assert sizes(server) == [25, 25, 10]
        client.translate(TEXTS[:30], model="dates", beam_size=4)  # may be another number
        assert sizes(server)[3:] == [30]


@pytest.mark.parametrize("call", ["translate", "stream_translate"])
async def test_a_refused_text_is_named_by_its_place_among_all(
    ask: Call, server: ScriptedServer, call: str
) -> None:
    def refuse(request: Any) -> Failure | None:
        return invalid("inputs[3]", "is odd") if "text 131" in request.inputs else None

    server.script.refuse = refuse
    with pytest.raises(InvalidRequestError, match=r"^inputs\[131\]: is odd$") as caught:
        await ask(call, TEXTS, model="dates")
    assert [violation.field for violation in caught.value.violations] == ["inputs[131]"]


async def test_a_list_that_is_refused_at_any_size_is_refused(ask: Call, server: ScriptedServer) -> None:
    server.script.refuse = lambda request: invalid("inputs", "1 with 99 hypotheses are more than 64")
    with pytest.raises(InvalidRequestError, match="99 hypotheses"):
        await ask("translate", TEXTS[:3], model="dates")
    assert sizes(server) == [3, 1]


async def test_the_time_is_for_all_calls_together(ask: Call, server: ScriptedServer) -> None:
    server.script.refuse = lambda request: time.sleep(0.2)
    began_s = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"the timeout was 0\.5 s"):
        await ask("translate", TEXTS * 4, model="dates", timeout_s=0.5)
    assert time.monotonic() - began_s < 5
    assert len(sizes(server)) < 10


async def test_long_texts_are_sent_in_messages_of_bounded_size(ask: Call, server: ScriptedServer) -> None:
    texts = ["é" * 300_000, "x" * 600_000, "y" * 2_500_000, "z" * 600_000]
    answers = await ask("translate", texts, model="dates")
    assert [answer.text[0] for answer in answers] == ["É", "X", "Y", "Z"]
    assert sizes(server) == [2, 1, 1]


async def test_no_texts_are_the_servers_to_refuse(ask: Call, server: ScriptedServer) -> None:
    server.script.refuse = lambda request: invalid("inputs", "is empty: there is nothing to answer")
    with pytest.raises(InvalidRequestError, match="is empty"):
        await ask("translate", [], model="dates")
    assert sizes(server) == [0]
