"""A whole server with several fronts: one port, one page of metrics, one end; all reach all lanes."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from tests.integration.child_server import ports, running
from tests.integration.serving import BUNDLES, PATIENCE_S, Served, eventually, http_get, serving

from dragoman.client import AsyncClient
from dragoman.inference import grpc_service_pb2
from dragoman.server.app import Server
from dragoman.server.config import load_settings
from dragoman.server.errors import AddressError
from dragoman.v1 import decoding_pb2, translation_pb2, translation_pb2_grpc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several fronts need Linux")

Request = translation_pb2.TranslateRequest
LONG = decoding_pb2.DecodingOptions(min_tokens=80)
NUM_CONNECTIONS = 16
"""The kernel gives each to one of two fronts: all of them to the same one in thirty thousand runs."""
TWO = ("engine.lanes_run_in=processes", "engine.lanes=2", "server.fronts=2")


def samples(port: int, name: str) -> dict[tuple[str, ...], float]:
    """Of the page that a scrape gets: by label values, in the order of the labels' names."""
    status, text = http_get(port, "/metrics")
    assert status == 200
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"dragoman_{name}"
    }


@contextlib.asynccontextmanager
async def stub(port: int) -> "AsyncIterator[translation_pb2_grpc.TranslationServiceAsyncStub]":
    """One with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield translation_pb2_grpc.TranslationServiceStub(channel)


def front_pids(served: Served) -> list[int]:
    assert served.server._fronts is not None
    return served.server._fronts.pids()


async def test_connections_spread_over_fronts_and_one_connection_reaches_all_lanes() -> None:
    async with serving(BUNDLES, *TWO) as served:
        port, metrics_port = served.server.port, served.server.metrics_port
        for _ in range(24):
            async with stub(port) as one:
                answer = await one.Translate(Request(model="spell", inputs=["12"]))
                assert answer.translations[0].text == "one two"
        page = await asyncio.to_thread(samples, metrics_port, "requests_total")
        assert page["OK", "Translate", "spell"] == 24
        assert 0 < served.codes()["spell", "Translate", "OK"] < 24, "the first front's share"
        before = await asyncio.to_thread(samples, metrics_port, "process_cpu_seconds_total")
        assert set(before) == {("front-0",), ("front-1",), ("engine-host",), ("lane-0",), ("lane-1",)}
        async with stub(port) as one:  # of one of the two fronts
            for _ in range(8):
                await asyncio.gather(
                    *(one.Translate(Request(model="spell", inputs=["12"] * 128)) for _ in range(3))
                )
        after = await asyncio.to_thread(samples, metrics_port, "process_cpu_seconds_total")
        assert all(after[lane,] > before[lane,] for lane in ("lane-0", "lane-1"))
        slots = await asyncio.to_thread(samples, metrics_port, "slots_total")
        assert slots["spell",] == served.metric("slots_total", model="spell") > 0, "not once for each front"


async def test_killed_fronts_lose_no_count_and_no_call_that_is_repeated() -> None:
    async with serving(BUNDLES, *TWO) as served:
        port, answered = served.server.port, 0

        async def call(num_calls: int) -> None:
            nonlocal answered
            for _ in range(num_calls):
                async with AsyncClient(f"127.0.0.1:{port}") as client:
                    [answer] = await client.translate(["12"], model="spell")
                    assert answer.text == "one two"
                    answered += 1

        calling = asyncio.gather(*(call(25) for _ in range(4)))
        for share in (20, 50, 80):
            await eventually(lambda share=share: answered >= share and front_pids(served) != [])  # type: ignore[misc]
            os.kill(front_pids(served)[0], signal.SIGKILL)
        await calling
        assert answered == 100
        page = await asyncio.to_thread(samples, served.server.metrics_port, "requests_total")
        num_counted = sum(
            count for (code, _, model), count in page.items() if (code, model) == ("OK", "spell")
        )
        # An answer may be counted and its front be killed before it has left: the client asks again.
        assert 0 <= num_counted - 100 <= 3 * 4
        await eventually(lambda: len(front_pids(served)) == 1)


async def test_a_killed_lane_and_a_killed_host_are_replaced_for_all_fronts() -> None:
    async with serving(BUNDLES, *TWO) as served:
        models: Any = served.server._models

        async def ask_all() -> None:
            for _ in range(12):
                async with AsyncClient(f"127.0.0.1:{served.server.port}") as client:
                    answers = await client.translate(["12"] * 40, model="spell")
                    assert {each.text for each in answers} == {"one two"}

        await ask_all()
        lane = models._models.pids[0]
        os.kill(lane, signal.SIGKILL)
        await ask_all()
        host = models.host.pid
        os.kill(host, signal.SIGKILL)
        await ask_all()
        assert models.host.pid != host
        assert front_pids(served), "the other front has not died of it"


def num_running_elsewhere(served: Served) -> float:
    """Sequences in the slots of the other front, as the page counts them beside those of the first."""
    page = samples(served.server.metrics_port, "requests_running")["spell",]
    return page - served.metric("requests_running", model="spell")


async def test_the_end_lets_the_calls_of_all_fronts_end() -> None:
    with capture_logs() as lines:
        async with serving(BUNDLES, *TWO) as served, contextlib.AsyncExitStack() as stack:
            [pid] = front_pids(served)
            stubs = [await stack.enter_async_context(stub(served.server.port)) for _ in range(16)]
            calls = [
                asyncio.ensure_future(one.Translate(Request(model="spell", inputs=["12"] * 40, options=LONG)))
                for one in stubs
            ]
            await eventually(lambda: num_running_elsewhere(served) > 0)
            await served.server.drain()
            for call in calls:
                assert len((await call).translations) == 40
            assert not psutil.pid_exists(pid)
    assert {line.get("front") for line in lines if line["event"] == "draining"} == {None, 1}
    assert not [line for line in lines if line["event"] in {"front_died", "front_killed", "drain_timeout"}]


async def test_a_port_of_another_server_is_refused_with_several_fronts_too() -> None:
    async with serving(BUNDLES, *TWO) as served:
        for fronts in (1, 2):
            settings = load_settings(
                options={
                    "models.directory": BUNDLES,
                    "server.port": served.server.port,
                    "server.metrics_port": 0,
                },
                overrides=[TWO[0], f"server.fronts={fronts}"],
            )
            with pytest.raises(AddressError, match="Address already in use"):
                Server(settings)


def test_two_that_start_at_once_do_not_share_a_port() -> None:
    settings = load_settings(
        options={"models.directory": BUNDLES, "server.port": 0, "server.metrics_port": 0}, overrides=TWO
    )
    first = Server(settings)  # it has bound, and listens only once models are loaded
    try:
        assert first._port_holder is not None
        port = first._port_holder.getsockname()[1]
        with pytest.raises(AddressError, match="Address already in use"):
            Server(settings.model_copy(update={"server": settings.server.model_copy(update={"port": port})}))
    finally:
        asyncio.run(first.close())


def test_a_process_with_several_fronts_from_its_start_to_its_end() -> None:
    arguments = [part for each in (*TWO, "server.fronts=3") for part in ("--set", each)]
    with running(*ports(), *arguments) as server:
        event = server.wait_for("serving")
        assert event["fronts"] == 3
        before = [line for line in server.events if line["event"] == "memory"]  # fronts may take longer
        memory = before[0] if before else server.wait_for("memory")
        assert memory["further_fronts"] != "0.0 MiB"
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert sum("dragoman.server.fronts.processes" in each.cmdline() for each in children) == 2
        for child in children:  # as a terminal, or a service manager, tells all processes
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
        with grpc.insecure_channel(f"127.0.0.1:{event['port']}") as channel:
            one = translation_pb2_grpc.TranslationServiceStub(channel)
            assert one.Translate(Request(model="spell", inputs=["12"]), timeout=PATIENCE_S)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 0
        assert [line.get("front") for line in server.events if line["event"] == "draining"].count(None) == 1
        assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_fronts_start_ends_all_of_them(number: signal.Signals) -> None:
    program = """
import dragoman.server.models.spawning as spawning
spawning.HOST_MODULE = "tests.integration.endless_host"
"""
    arguments = [part for each in TWO for part in ("--set", each)]
    with running(*ports(), *arguments, program=program) as server:
        server.wait_for("endless")
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(number)
        assert server.wait_for_end() == 0
        assert server.events[-1]["event"] == "stopped"
        assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]


def test_what_keeps_the_server_from_starting_is_one_line_with_fronts_too(tmp_path: Path) -> None:
    arguments = [part for each in TWO for part in ("--set", each)]
    with running(*ports(tmp_path), *arguments) as server:
        assert server.wait_for_end() == 2
        assert [line["event"] for line in server.events if line["level"] != "info"] == ["cannot_serve"]


async def test_each_front_has_the_statistics_of_all() -> None:
    async with serving(BUNDLES, *TWO) as served, contextlib.AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        target = f"127.0.0.1:{served.server.port}"
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
            for _ in range(NUM_CONNECTIONS)
        ]
        for channel in channels:
            await Served(served.server, channel).translation.Translate(Request(model="spell", inputs=["12"]))
        port = served.server.metrics_port
        await eventually(
            lambda: samples(port, "requests_total").get(("OK", "Translate", "spell")) == NUM_CONNECTIONS
        )
        assert served.codes()["spell", "Translate", "OK"] < NUM_CONNECTIONS, "both fronts have answered"
        counted = []
        for channel in channels:
            ask: Any = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelStatistics",
                request_serializer=grpc_service_pb2.ModelStatisticsRequest.SerializeToString,
                response_deserializer=grpc_service_pb2.ModelStatisticsResponse.FromString,
            )
            request = grpc_service_pb2.ModelStatisticsRequest(name="spell")
            answers = await asyncio.gather(*(ask(request) for _ in range(3)))
            counted += [each.model_stats[0].inference_stats.success.count for each in answers]
        assert counted == [NUM_CONNECTIONS] * 3 * NUM_CONNECTIONS
