"""Callers that ask for too much, too late or take it back: their neighbours are answered, and all of it is counted."""

import asyncio
import collections
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import h2.errors
import h2.events
import h2.settings
import pytest
from google.rpc import error_details_pb2
from tests.integration.raw_http2 import RawClient
from tests.integration.serving import (
    PATIENCE_S,
    Gate,
    Served,
    detail_of,
    error_of,
    eventually,
    one_version,
    serving,
)

from dragoman.client import AsyncClient
from dragoman.server.fronts.grpc import interceptors
from dragoman.server.requests import deadline
from dragoman.v1 import decoding_pb2, translation_pb2

Request = translation_pb2.TranslateRequest
TRANSLATE = "/dragoman.v1.TranslationService/Translate"
REQUEST = Request(model="spell", inputs=["12"])
MESSAGE = REQUEST.SerializeToString()
MAX_STREAMS = 50


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(
        one_version(tmp_path, "spell/1"), f"server.max_streams_per_connection={MAX_STREAMS}"
    ) as served:
        yield served


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def open_streams(port: int, num_streams: int, *, reset: bool) -> collections.Counter[str]:
    """Open so many streams without a look at what the server allows; returns how those ended that did."""
    ends: collections.Counter[str] = collections.Counter()
    with RawClient(port, window=65_535) as client:
        client.read_until_event(h2.events.RemoteSettingsChanged)
        client.http2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 2**20
        client.http2.remote_settings.acknowledge()
        for _ in range(num_streams):
            client.call(TRANSLATE, MESSAGE, reset=reset)
        end_s = time.monotonic() + PATIENCE_S
        while not reset and ends.total() < num_streams and time.monotonic() < end_s:
            for event in client.http2.receive_data(client.socket.recv(1 << 16)):
                if isinstance(event, h2.events.StreamReset):
                    ends[h2.errors.ErrorCodes(event.error_code or 0).name] += 1
                elif isinstance(event, h2.events.TrailersReceived):
                    ends[dict(event.headers)["grpc-status"]] += 1  # type: ignore[index]
            client.send()
    return ends


async def answers_of_a_neighbour(served: Served, num_calls: int) -> collections.Counter[str]:
    texts: collections.Counter[str] = collections.Counter()
    for _ in range(num_calls):
        response = await served.translation.Translate(REQUEST, timeout=PATIENCE_S)
        texts[response.translations[0].text] += 1
    return texts


async def test_the_limit_of_streams_is_advertised(served: Served) -> None:
    def limit() -> int:
        with RawClient(served.server.port, window=65_535) as client:
            client.read_until_event(h2.events.RemoteSettingsChanged)
            return int(client.http2.remote_settings.max_concurrent_streams)

    assert await asyncio.to_thread(limit) == MAX_STREAMS


async def test_streams_beyond_the_limit_are_refused_and_a_neighbour_is_answered(served: Served) -> None:
    num_streams = 40 * MAX_STREAMS
    flood = asyncio.create_task(asyncio.to_thread(open_streams, served.server.port, num_streams, reset=False))
    assert await answers_of_a_neighbour(served, 30) == {"one two": 30}
    ends = await flood
    assert set(ends) <= {"0", "REFUSED_STREAM"}, "each was answered, or refused as not begun"
    assert ends["REFUSED_STREAM"] > 0
    assert ends.total() == num_streams


async def test_rapid_resets_hurt_no_neighbour(served: Served) -> None:
    flood = asyncio.create_task(asyncio.to_thread(open_streams, served.server.port, 3000, reset=True))
    assert await answers_of_a_neighbour(served, 30) == {"one two": 30}
    await flood
    assert await answers_of_a_neighbour(served, 10) == {"one two": 10}


async def test_thousands_of_calls_of_one_client_are_all_answered(served: Served) -> None:
    async with AsyncClient(f"127.0.0.1:{served.server.port}", timeout_s=60) as client:
        answers = await asyncio.gather(*(client.translate("12", model="spell") for _ in range(1000)))
    assert {answer.text for [answer] in answers} == {"one two"}
    await eventually(lambda: served.codes() == {("spell", "Translate", "OK"): 1000.0})
    assert served.metric("calls_started_total") == served.metric("calls_taken_up_total") >= 1000


async def test_deadlines_that_pass_are_never_counted_as_cancelled(served: Served, gate: Gate) -> None:
    with gate.closed():
        calls = [served.translation.Translate(REQUEST, timeout=0.6 + 0.01 * number) for number in range(16)]
        errors = await asyncio.gather(*map(error_of, calls))
    assert {error.code() for error in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    await eventually(lambda: served.codes() == {("spell", "Translate", "DEADLINE_EXCEEDED"): 16.0})


async def test_a_client_that_gives_up_a_moment_before_the_servers_clock_has_not_cancelled(
    served: Served, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a client does whose headers were on their way for longer than its reset: by so much on a busy machine.
    monkeypatch.setattr(deadline, "TRANSIT_S", 0.5)

    def call() -> None:
        with RawClient(served.server.port, window=65_535) as client:
            stream = client.call(TRANSLATE, MESSAGE, timeout="800m")
            time.sleep(0.7)
            client.http2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            client.send()

    with gate.closed():
        await asyncio.to_thread(call)
        await eventually(lambda: served.codes() == {("spell", "Translate", "DEADLINE_EXCEEDED"): 1.0})


async def test_who_leaves_with_time_left_has_cancelled(served: Served, gate: Gate) -> None:
    with gate.closed():
        call = served.translation.Translate(REQUEST, timeout=PATIENCE_S)
        await gate.wait_for_lane()
        call.cancel()
        await eventually(lambda: served.codes() == {("spell", "Translate", "CANCELLED"): 1.0})


async def test_a_call_that_is_taken_up_late_is_refused_before_any_work(served: Served) -> None:
    sent = threading.Event()

    def call() -> None:
        with RawClient(served.server.port, window=65_535) as client:
            client.call(TRANSLATE, MESSAGE, timeout="50m")
            sent.set()
            client.read_until_event(h2.events.StreamEnded, h2.events.StreamReset)

    client = asyncio.create_task(asyncio.to_thread(call))
    await asyncio.sleep(0)  # the thread has been started
    assert sent.wait(PATIENCE_S)
    time.sleep(0.5)  # noqa: ASYNC251
    await client
    await eventually(lambda: served.codes() == {("unknown", "Translate", "DEADLINE_EXCEEDED"): 1.0})
    assert served.rejected("unknown", "arrival", "late") == 1
    assert served.metric("input_tokens_total", model="spell") == 0


async def test_a_call_without_a_message_is_an_invalid_one(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "NO_MESSAGE_S", 0.05)

    def call() -> None:
        with RawClient(served.server.port, window=65_535) as client:
            client.call(TRANSLATE, None)
            client.read_until_event(h2.events.StreamEnded)

    await asyncio.to_thread(call)
    await eventually(lambda: served.codes() == {("unknown", "Translate", "INVALID_ARGUMENT"): 1.0})
    assert served.rejected("unknown", "arrival", "no_message") == 1


async def test_a_call_too_many_is_refused_with_a_delay(tmp_path: Path, gate: Gate) -> None:
    async with serving(one_version(tmp_path, "spell/1"), "server.max_concurrent_calls=2") as served:
        with gate.closed():
            running = [served.translation.Translate(REQUEST) for _ in range(2)]
            await eventually(lambda: served.num_accepted("spell") == 2)
            error, retry_info = await detail_of(
                served.translation.Translate(REQUEST), error_details_pb2.RetryInfo
            )
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "2 calls are being answered already"
        assert retry_info.retry_delay.ToMilliseconds() == 1000
        trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
        assert trailers["grpc-retry-pushback-ms"] == "1000"
        assert [(await call).translations[0].text for call in running] == ["one two"] * 2
        assert served.rejected("unknown", "arrival", "too_many_calls") == 1
        # The model and version of a call that was refused unread are not known.
        assert served.codes()["unknown", "Translate", "RESOURCE_EXHAUSTED"] == 1


async def test_calls_that_would_wait_too_long_for_a_slot_are_refused_at_once(
    tmp_path: Path, gate: Gate
) -> None:
    long = Request(model="spell", inputs=["12"], options=decoding_pb2.DecodingOptions(min_tokens=40))
    async with serving(one_version(tmp_path, "spell/1"), "engine.slots_per_lane=2") as served:
        # At full load two of these take so long that the next sixty cannot be answered within a second.
        with gate.closed():
            calls = [served.translation.Translate(long) for _ in range(60)]
            await eventually(lambda: served.num_accepted("spell") == 60)
            await asyncio.sleep(0.3)
            error = await error_of(served.translation.Translate(REQUEST, timeout=1.0))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert served.rejected("spell", "admission", "no_time") == 1
            patient = served.translation.Translate(REQUEST)
            await eventually(lambda: served.num_accepted("spell") == 61)
        await asyncio.gather(patient, *calls)
