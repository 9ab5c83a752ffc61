"""Every way a call can fail: its status code, its details, its count, its line in the log."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import h2.events
import pytest
import structlog.testing
from google.rpc import error_details_pb2
from tests.integration.raw_http2 import RawClient
from tests.integration.serving import (
    Gate,
    Served,
    detail_of,
    error_of,
    eventually,
    one_version,
    serving,
    violations_of,
)

from dragoman.server.execution.rows import Rows
from dragoman.server.lifecycle import Phase
from dragoman.server.requests.tokenization import Tokenising
from dragoman.v1 import decoding_pb2, generation_pb2, model_pb2, translation_pb2

Options = decoding_pb2.DecodingOptions
Request = translation_pb2.TranslateRequest
LONG = Options(max_tokens=81, min_tokens=80)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(
        one_version(tmp_path, "spell/1", "count/2"),
        "engine.slots_per_lane=1",
        "engine.max_waiting=2",
        "server.max_inputs=2",
        "server.max_message_bytes=10000",
    ) as served:
        yield served


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def test_all_violations_at_once(served: Served) -> None:
    options = Options(max_tokens=0, temperature=-1, stop=[""])
    call = served.translation.Translate(Request(model="spell", inputs=["12", "  "], options=options))
    assert await violations_of(call) == {
        "inputs[1]": "is empty",
        "options.max_tokens": "0 is not between 1 and 81, the model's limit",
        "options.temperature": "-1 is not between 0 and 100",
        "options.stop[0]": "is empty",
    }
    expected = {("spell", "Translate", "INVALID_ARGUMENT"): 1.0}
    await eventually(lambda: served.codes() == expected)
    assert served.rejected("spell", "admission", "invalid") == 1


@pytest.mark.parametrize(
    ("inputs", "violations"),
    [
        ([], {"inputs": "is empty: there is nothing to answer"}),
        (["1", "2", "3"], {"inputs": "3 are more than 2, the server's limit"}),
        (["1", "2" * 40], {"inputs[1]": "41 tokens are more than 32, the model's limit"}),
        (
            ["1", "2" * 5000],
            {"inputs[1]": "5000 characters are more than 128: the model's limit is 32 tokens"},
        ),
    ],
)
async def test_inputs_that_cannot_be_translated(
    served: Served, inputs: list[str], violations: dict[str, str]
) -> None:
    assert (
        await violations_of(served.translation.Translate(Request(model="spell", inputs=inputs))) == violations
    )
    stream = served.translation.StreamTranslate(Request(model="spell", inputs=inputs))
    assert await violations_of(stream) == violations


async def test_more_hypotheses_than_the_queue_ever_has_room_for(served: Served) -> None:
    options = Options(temperature=1, num_hypotheses=2, max_tokens=1)
    call = served.translation.Translate(Request(model="spell", inputs=["1", "2"], options=options))
    assert await violations_of(call) == {
        "inputs": "2 with 4 hypotheses in all are more than 3, the server's limit"
    }
    prompt = generation_pb2.GenerateRequest(
        model="count", prompt="one", options=Options(temperature=1, num_hypotheses=4)
    )
    assert await violations_of(served.generation.Generate(prompt)) == {
        "prompt": "1 with 4 hypotheses in all are more than 3, the server's limit"
    }
    prompt.options.num_hypotheses = 3
    answer = [response async for response in served.generation.Generate(prompt)]
    assert len(answer[-1].summary.hypotheses) == 3


async def test_prompts_that_cannot_be_continued(served: Served) -> None:
    empty = generation_pb2.GenerateRequest(model="count", prompt="")
    assert await violations_of(served.generation.Generate(empty)) == {"prompt": "is empty"}
    long = generation_pb2.GenerateRequest(model="count", prompt="xyz " * 300)
    described = await violations_of(served.generation.Generate(long))
    assert described["prompt"].endswith("tokens are more than 255, the model's limit")


async def test_a_prompt_that_leaves_less_than_the_minimum(served: Served) -> None:
    request = generation_pb2.GenerateRequest(
        model="count", prompt="one two three four", options=Options(min_tokens=255)
    )
    described = await violations_of(served.generation.Generate(request))
    assert list(described) == ["options.min_tokens"]
    limit = int(described["options.min_tokens"].split()[4].rstrip(","))
    request.options.min_tokens = limit
    answer = [response async for response in served.generation.Generate(request)]
    assert answer[-1].summary.usage.output_tokens == limit


async def test_a_model_of_another_task(served: Served) -> None:
    generate = served.generation.Generate(generation_pb2.GenerateRequest(model="spell", prompt="12"))
    assert await violations_of(generate) == {"model": "'spell' is a translation model, not for generation"}
    call = served.translation.Translate(Request(model="count", inputs=["12"]))
    assert await violations_of(call) == {"model": "'count' is a generation model, not for translation"}


async def test_a_message_of_another_type(served: Served) -> None:
    method: Any = served.channel.unary_unary("/dragoman.v1.TranslationService/Translate")
    error = await error_of(method(b"\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not of this method's type" in (error.details() or "")
    expected = {("unknown", "Translate", "INVALID_ARGUMENT"): 1.0}
    await eventually(lambda: served.codes() == expected)
    assert served.rejected("unknown", "admission", "invalid") == 1


async def test_an_unknown_model_or_version_lists_what_there_is(served: Served) -> None:
    error = await error_of(served.translation.Translate(Request(model="spel", inputs=["1"])))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no model 'spel'; this server has: count/2, spell/1"
    error = await error_of(served.models.GetModel(model_pb2.GetModelRequest(model="spell", version="7")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no model 'spell/7'; this server has: count/2, spell/1"
    expected = {("unknown", "Translate", "NOT_FOUND"): 1.0, ("spell", "GetModel", "NOT_FOUND"): 1.0}
    await eventually(lambda: served.codes() == expected)
    assert served.rejected("unknown", "admission", "invalid") == 1


async def run_first_step(served: Served, gate: Gate) -> None:
    """Let the one call of the model have its first step, after which it is known to run."""
    await gate.wait_for_lane()
    gate.allow(1)
    await eventually(lambda: served.metric("requests_running", model="spell") == 1)


async def test_a_full_queue_refuses_early_and_says_when_to_retry(served: Served, gate: Gate) -> None:
    with gate.closed():
        running = served.translation.Translate(Request(model="spell", inputs=["1"]))
        await run_first_step(served, gate)
        waiting = served.translation.Translate(Request(model="spell", inputs=["2"]))
        await eventually(lambda: served.metric("requests_waiting", model="spell") == 1)
        # One more fits, two do not: the call is refused as a whole.
        refused = served.translation.Translate(Request(model="spell", inputs=["3", "4"]))
        error, retry_info = await detail_of(refused, error_details_pb2.RetryInfo)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_info.retry_delay.ToMilliseconds() > 0
        await eventually(lambda: served.metric("requests_waiting", model="spell") == 1)
    assert [(await call).translations[0].text for call in (running, waiting)] == ["one", "two"]
    assert served.rejected("spell", "admission", "queue_full") == 1


async def test_a_call_without_room_is_refused_before_its_texts_are_tokenised(
    served: Served, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised: list[str] = []
    encode = Tokenising.encode

    async def recorded(self: Tokenising, tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
        tokenised.extend(texts)
        return await encode(self, tokenizer, texts, **options)

    monkeypatch.setattr(Tokenising, "encode", recorded)
    with gate.closed():
        running = served.translation.Translate(Request(model="spell", inputs=["1"]))
        await run_first_step(served, gate)
        waiting = served.translation.Translate(Request(model="spell", inputs=["2"]))
        await eventually(lambda: served.metric("requests_waiting", model="spell") == 1)
        pair = translation_pb2.ScoredPair(source="5", target="five")
        for refused in (
            served.translation.Translate(Request(model="spell", inputs=["3", "4"])),
            served.translation.StreamTranslate(Request(model="spell", inputs=["3", "4"])),
            served.translation.ScoreTranslations(
                translation_pb2.ScoreTranslationsRequest(model="spell", pairs=[pair, pair])
            ),
        ):
            assert (await error_of(refused)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await asyncio.gather(running, waiting)
    assert tokenised == ["1", "2"]


async def test_a_stopping_server_is_unavailable(served: Served) -> None:
    served.server.lifecycle.phase = Phase.STOPPING
    error = await error_of(served.translation.Translate(Request(model="spell", inputs=["1"])))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "the server is shutting down"
    await eventually(lambda: served.rejected("spell", "admission", "draining") == 1)


async def test_a_deadline_that_passes_in_the_queue(served: Served, gate: Gate) -> None:
    with gate.closed():
        running = served.translation.Translate(Request(model="spell", inputs=["1"]))
        await gate.wait_for_lane()
        error = await error_of(
            served.translation.Translate(Request(model="spell", inputs=["2"]), timeout=0.6)
        )
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: served.num_accepted("spell") == 0)
    assert (await running).translations[0].text == "one"
    expected = {("spell", "Translate", "OK"): 1.0, ("spell", "Translate", "DEADLINE_EXCEEDED"): 1.0}
    await eventually(lambda: served.codes() == expected)
    assert served.rejected("spell", "queue", "deadline") == 1


async def test_a_deadline_that_passes_while_running_frees_the_slot(served: Served, gate: Gate) -> None:
    with gate.closed():
        request = Request(model="spell", inputs=["1"], options=LONG)
        call = served.translation.StreamTranslate(request, timeout=1.0)
        await run_first_step(served, gate)
        error = await error_of(call)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: ("spell", "StreamTranslate", "DEADLINE_EXCEEDED") in served.codes())
        assert served.metric("slots_used", model="spell") == 1, "the step that was on its way is not over"
    # The only slot is free again.
    response = await served.translation.Translate(Request(model="spell", inputs=["5"]))
    assert response.translations[0].text == "five"
    late = {stage: served.rejected("spell", stage, "deadline") for stage in ("admission", "queue", "running")}
    assert late == {"admission": 0, "queue": 0, "running": 1}
    assert served.metric("output_tokens_total", model="spell") == 5, "an unfinished answer is not counted"


async def test_our_own_failure_is_generic_outside_and_precise_in_the_log(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(rows: Rows, num_rows: int) -> None:
        raise RuntimeError("secret of the inside")

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(Rows, "decode", broken)
        patch.setattr(Rows, "decode_steps", broken)
        error = await error_of(served.translation.Translate(Request(model="spell", inputs=["31337"])))
    assert error.code() is grpc.StatusCode.INTERNAL
    [line] = [line for line in logs if line["event"] == "request"]
    assert error.details() == f"internal error; the server's log has it under request id {line['request_id']}"
    assert line["log_level"] == "error"
    assert "31337" not in str(logs)
    response = await served.translation.Translate(Request(model="spell", inputs=["5"]))
    assert response.translations[0].text == "five"
    expected = {("spell", "Translate", "INTERNAL"): 1.0, ("spell", "Translate", "OK"): 1.0}
    await eventually(lambda: served.codes() == expected)


async def test_the_log_has_one_line_a_call_and_no_text(served: Served) -> None:
    with structlog.testing.capture_logs() as logs:
        await served.translation.Translate(Request(model="spell", inputs=["31337"]))
        await error_of(served.translation.Translate(Request(model="spell", inputs=["31337 " * 20])))
    assert [(line["code"], line["log_level"]) for line in logs] == [
        ("OK", "debug"),
        ("INVALID_ARGUMENT", "warning"),
    ]
    assert "31337" not in str(logs)


async def test_a_message_over_the_limit(served: Served) -> None:
    error = await error_of(served.translation.Translate(Request(model="spell", inputs=["1" * 20_000])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method_is_no_label(served: Served) -> None:
    method: Any = served.channel.unary_unary("/dragoman.v1.TranslationService/Guess")
    error = await error_of(method(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert served.codes() == {}


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_cancelled_call_leaves_its_neighbour_alone(
    tmp_path: Path, gate: Gate, *, streaming: bool
) -> None:
    request = Request(model="spell", inputs=["90210", "5"], options=LONG)
    neighbour_request = Request(model="spell", inputs=["777"], options=LONG)
    async with serving(one_version(tmp_path, "spell/1"), "engine.slots_per_lane=4") as served:
        alone = (await served.translation.Translate(neighbour_request)).translations[0]
        with gate.closed():
            method = served.translation.StreamTranslate if streaming else served.translation.Translate
            doomed: Any = method(request)
            neighbour = served.translation.Translate(neighbour_request)
            await eventually(
                lambda: (
                    served.metric("slots_used", model="spell")
                    + served.metric("requests_waiting", model="spell")
                    == 3
                )
            )
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await error_of(doomed)
            code = "StreamTranslate" if streaming else "Translate"
            await eventually(lambda: served.codes().get(("spell", code, "CANCELLED")) == 1)
        assert (await neighbour).translations[0] == alone
        assert served.metric("output_tokens_total", model="spell") == 2 * alone.usage.output_tokens
        assert served.metric("slots_used", model="spell") == 0


async def test_a_caller_who_leaves_in_the_middle_of_a_stream(served: Served) -> None:
    call = served.generation.Generate(
        generation_pb2.GenerateRequest(model="count", prompt="one two", options=Options(min_tokens=200))
    )
    async for _ in call:
        call.cancel()
        break
    await eventually(lambda: served.codes() == {("count", "Generate", "CANCELLED"): 1.0})
    await eventually(lambda: served.metric("slots_used", model="count") == 0)


@pytest.mark.parametrize(
    "path", [b"/\xff\xfe/\x80", b"", b"Translate", b"/dragoman.v1.TranslationService/Nope"]
)
async def test_a_path_that_is_none_ends_one_call_and_not_the_server(served: Served, path: bytes) -> None:
    def ask() -> None:
        with RawClient(served.server.port, window=1 << 16) as client:
            for _ in range(5):
                stream = client.call(path, b"")
                client.read_until((h2.events.StreamEnded, h2.events.StreamReset), stream)

    await asyncio.to_thread(ask)
    answer = await served.translation.Translate(Request(model="spell", inputs=["12"]))
    assert answer.translations[0].text == "one two"


async def test_an_unknown_method_is_unimplemented(served: Served) -> None:
    for path in ("/dragoman.v1.TranslationService/Nope", "/nope.Nope/Nope"):
        call: Any = served.channel.unary_unary(path)
        error = await error_of(call(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error.details() == "no such method"
    await eventually(
        lambda: served.metric("calls_taken_up_total") == served.metric("calls_started_total") == 2
    )
