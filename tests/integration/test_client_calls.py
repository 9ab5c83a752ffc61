"""Both clients against a real gRPC server: what goes out, what comes back, what goes wrong."""

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from tests.integration.child_server import held_port
from tests.integration.scripted_server import Failure, ScriptedServer, invalid, overloaded, running_server

from dragoman.client import (
    AsyncClient,
    ChannelSettings,
    Client,
    DeadlineExceededError,
    FieldViolation,
    FinishReason,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ServerError,
    Task,
    Translation,
    UnavailableError,
)
from dragoman.common.errors import OperationError, UsageError

NO_RETRIES = ChannelSettings(max_attempts=1)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.target, timeout_s=10) as blocking:
        yield blocking


def test_translations_come_in_the_order_of_the_texts(client: Client, server: ScriptedServer) -> None:
    answers = client.translate(["un", "deux"], model="dates", version="3")
    assert answers == [
        Translation("UN", FinishReason.END_OF_SEQUENCE, 3, 3, -0.25, -0.125, "3"),
        Translation("DEUX", FinishReason.END_OF_SEQUENCE, 5, 5, -0.25, -0.125, "3"),
    ]
    [request] = server.script.requests
    assert (request.model, request.version, list(request.inputs)) == ("dates", "3", ["un", "deux"])
    assert not request.options.ListFields()


def test_one_text_is_a_list_of_one(client: Client) -> None:
    assert [answer.text for answer in client.translate("un", model="dates")] == ["UN"]


def test_options_reach_the_server_and_what_is_left_out_stays_unset(
    client: Client, server: ScriptedServer
) -> None:
    client.translate("un", model="dates", max_tokens=7, temperature=0.0, top_p=None, seed=2**63, stop="\n")
    options = server.script.requests[0].options
    assert {field.name: value for field, value in options.ListFields()} == {
        "max_tokens": 7,
        "temperature": 0.0,
        "seed": 2**63,
        "stop": ["\n"],
    }


def test_a_stream_interleaves_texts_and_ends_each_with_the_whole(client: Client) -> None:
    pieces = list(client.stream_translate(["ab", "xyz"], model="dates"))
    assert [(piece.index, piece.text) for piece in pieces] == [
        (0, "A"),
        (1, "X"),
        (0, "B"),
        (1, "Y"),
        (1, "Z"),
    ]
    whole = {piece.index: piece.translation.text for piece in pieces if piece.translation}
    assert whole == {0: "AB", 1: "XYZ"}


def test_generation_gives_text_and_then_its_summary(client: Client) -> None:
    generation = client.generate("def main", model="stdlib", max_tokens=2)
    first = next(generation)
    with pytest.raises(RuntimeError, match="after its last piece"):
        _ = generation.summary
    assert first + "".join(generation) == "defé mainé "
    assert generation.summary.finish_reason is FinishReason.LENGTH
    assert generation.summary.num_output_tokens == 9
    assert generation.summary.version == "1"


def test_models_are_plain_data(client: Client) -> None:
    assert [(model.name, model.version) for model in client.models()] == [
        ("dates", "1"),
        ("dates", "3"),
        ("stdlib", "1"),
    ]
    model = client.model("dates")
    assert (model.version, model.task, model.num_parameters) == ("3", Task.TRANSLATION, 1_234_567)
    assert model.provenance == {"recipe": "dates", "step": 500}
    assert model.quality[0].value == 99.7


async def test_the_asyncio_client_has_the_same_calls(server: ScriptedServer) -> None:
    async with AsyncClient(server.target, timeout_s=10) as client:
        assert [answer.text for answer in await client.translate(["un", "deux"], model="dates")] == [
            "UN",
            "DEUX",
        ]
        pieces = [piece.text async for piece in client.stream_translate("ab", model="dates")]
        assert pieces == ["A", "B"]
        generation = client.generate("a b", model="stdlib")
        assert [piece async for piece in generation] == ["aé ", "bé "]
        assert generation.summary.finish_reason is FinishReason.LENGTH
        assert len(await client.models()) == 3
        assert (await client.model("stdlib")).task is Task.GENERATION
        await client.wait_until_serving(timeout_s=5)
        with pytest.raises(NotFoundError, match="no model 'nope'"):
            await client.model("nope")


def test_a_refused_field_is_named(client: Client, server: ScriptedServer) -> None:
    server.script.failures.append(invalid("options.top_p", "1.5 is not between 0 and 1"))
    with pytest.raises(InvalidRequestError) as caught:
        client.translate("un", model="dates", top_p=1.5)
    assert caught.value.violations == (FieldViolation("options.top_p", "1.5 is not between 0 and 1"),)
    assert str(caught.value) == "options.top_p: 1.5 is not between 0 and 1"
    assert isinstance(caught.value, UsageError)


def test_what_is_not_there_is_the_callers_mistake(client: Client) -> None:
    with pytest.raises(NotFoundError, match=r"no model 'nope'; this server has: dates/3"):
        client.model("nope")


def test_a_missed_deadline_says_how_long_it_was_and_frees_the_server(
    client: Client, server: ScriptedServer
) -> None:
    client.models()  # it is connected
    server.script.hold.clear()
    with pytest.raises(DeadlineExceededError, match=r"the timeout was 0\.8 s") as caught:
        client.translate("un", model="dates", timeout_s=0.8)
    assert isinstance(caught.value, OperationError)
    assert server.script.cancelled.wait(timeout=10)


def test_an_unreachable_server_is_named() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = pytest.raises(UnavailableError, match=f"no answer from {target}: .*refused")
        with Client(target, settings=NO_RETRIES) as client, refused:
            client.models()


def test_a_call_the_server_does_not_know_is_no_traceback(server: ScriptedServer) -> None:
    server.script.failures.append(Failure(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
    with Client(server.target) as client, pytest.raises(ServerError, match="does not offer this call"):
        client.models()


@pytest.mark.parametrize("failure", [Failure(grpc.StatusCode.UNAVAILABLE), overloaded(0.05)])
def test_a_passing_failure_is_tried_again(client: Client, server: ScriptedServer, failure: Failure) -> None:
    server.script.failures.extend([failure, failure])
    assert client.translate("un", model="dates")[0].text == "UN"
    assert len(server.script.requests) == 3


def test_the_server_decides_how_long_to_wait_before_another_try(
    client: Client, server: ScriptedServer
) -> None:
    server.script.failures.append(overloaded(0.6, trailers=(("grpc-retry-pushback-ms", "600"),)))
    begin_s = time.monotonic()
    client.translate("un", model="dates")
    assert time.monotonic() - begin_s >= 0.6


def test_without_retries_the_first_failure_is_final(server: ScriptedServer) -> None:
    server.script.failures.append(overloaded(0.25))
    refused = pytest.raises(OverloadedError, match="the queue is full")
    with Client(server.target, settings=NO_RETRIES) as client, refused as caught:
        client.translate("un", model="dates")
    assert caught.value.retry_delay_s == 0.25
    assert len(server.script.requests) == 1


def test_the_callers_own_mistake_is_not_tried_again(client: Client, server: ScriptedServer) -> None:
    server.script.failures.append(invalid("inputs[0]", "empty text"))
    with pytest.raises(InvalidRequestError):
        client.translate("", model="dates")
    assert len(server.script.requests) == 1


def test_a_stream_that_is_closed_ends_on_the_server(client: Client, server: ScriptedServer) -> None:
    server.script.hold.clear()
    with client.generate("a b", model="stdlib"):
        assert server.script.arrived.acquire(timeout=10)
    assert server.script.cancelled.wait(timeout=10)


def test_a_stream_that_is_dropped_ends_on_the_server(client: Client, server: ScriptedServer) -> None:
    server.script.hold.clear()
    stream = client.stream_translate("ab", model="dates")
    assert server.script.arrived.acquire(timeout=10)
    del stream
    gc.collect()
    assert server.script.cancelled.wait(timeout=10)


async def test_an_asyncio_stream_that_is_closed_ends_on_the_server(server: ScriptedServer) -> None:
    server.script.hold.clear()
    async with AsyncClient(server.target) as client, client.generate("a b", model="stdlib") as generation:
        first = asyncio.ensure_future(anext(generation))
        assert await asyncio.to_thread(server.script.arrived.acquire, timeout=10)
        generation.close()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await asyncio.to_thread(server.script.cancelled.wait, 10)


async def test_calls_are_spread_over_every_address() -> None:
    with running_server() as one, running_server() as two:
        async with AsyncClient(f"ipv4:{one.target},{two.target}", timeout_s=10) as client:
            while not (one.script.requests and two.script.requests):
                await client.translate("un", model="dates")
            one.script.requests.clear()
            two.script.requests.clear()
            for _ in range(10):
                await client.translate("un", model="dates")
        assert (len(one.script.requests), len(two.script.requests)) == (5, 5)


def test_a_dead_address_is_passed_over(server: ScriptedServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(f"ipv4:{dead},{server.target}", timeout_s=10) as client:
            assert all(client.translate("un", model="dates") for _ in range(6))


def test_waiting_ends_when_the_server_says_serving(server: ScriptedServer) -> None:
    server.set_serving(False)
    with Client(server.target) as client:
        with pytest.raises(DeadlineExceededError):
            client.wait_until_serving(timeout_s=0.2)
        timer = threading.Timer(0.1, server.set_serving, args=(True,))
        timer.start()
        client.wait_until_serving(timeout_s=10)
        timer.join()


def test_waiting_for_a_server_that_starts_later() -> None:
    started = threading.Event()
    finish = threading.Event()

    def serve() -> None:
        with running_server(port) as later:
            started.set()
            assert later.port == port
            finish.wait(timeout=30)

    with (
        held_port() as port,
        Client(f"127.0.0.1:{port}", wait_for_ready=True, timeout_s=20) as client,
    ):
        thread = threading.Timer(0.3, serve)
        thread.start()
        try:
            client.wait_until_serving(timeout_s=20)
            assert started.is_set()
            assert client.translate("un", model="dates")[0].text == "UN"
        finally:
            finish.set()
            thread.join()
