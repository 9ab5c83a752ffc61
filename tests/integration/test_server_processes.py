"""A server whose lanes are processes: what it answers, and what becomes of calls when one of them is killed."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import structlog
from tests.integration.child_server import ports, running
from tests.integration.process_tools import is_running, members, open_files
from tests.integration.serving import BUNDLES, PATIENCE_S, Served, eventually, serving

from dragoman.cli.main import main
from dragoman.client import AsyncClient
from dragoman.server.models.running import ModelsInProcesses
from dragoman.v1 import decoding_pb2, translation_pb2

Request = translation_pb2.TranslateRequest
IN_PROCESSES = ("engine.lanes_run_in=processes", "engine.lanes=2")
LONG = decoding_pb2.DecodingOptions(min_tokens=80)


def models_of(served: Served) -> ModelsInProcesses:
    models = served.server._models
    assert isinstance(models, ModelsInProcesses)
    return models


def pids_of(served: Served) -> dict[int, int]:
    return dict(models_of(served)._models.pids)


def num_running(served: Served) -> int:
    """Without a page of metrics, which takes so long that the calls may be over."""
    return served.model("spell").engine.occupancy().num_running


async def codes_of(calls: list[Any]) -> list[str]:
    outcomes: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    return [
        each.code().name if isinstance(each, grpc.aio.AioRpcError) else each.translations[0].text
        for each in outcomes
    ]


async def test_a_call_is_answered_by_lanes_in_processes() -> None:
    with structlog.testing.capture_logs() as log:
        async with serving(BUNDLES, *IN_PROCESSES) as served:
            answers = await asyncio.gather(
                *(served.translation.Translate(Request(model="spell", inputs=["12"] * 64)) for _ in range(8))
            )
            assert {each.text for answer in answers for each in answer.translations} == {"one two"}
            host = models_of(served).host.pid
            assert sorted(members(host)) == sorted([host, *pids_of(served).values()])
            assert served.metric("output_tokens_total", model="spell") > 0
            assert served.metric("step_duration_seconds_count", model="spell", graph="encode") > 0
            await eventually(lambda: any(each["event"] == "memory" for each in log))
        assert members(host) == []
    [memory] = [each for each in log if each["event"] == "memory"]
    print(memory)
    assert memory["num_lanes"] == len(pids_of(served))


async def test_calls_that_a_killed_lane_held_can_be_repeated_and_others_go_on() -> None:
    async with serving(BUNDLES, *IN_PROCESSES, "engine.slots_per_lane=4") as served:
        lane = pids_of(served)[0]
        calls = [
            served.translation.Translate(Request(model="spell", inputs=["12"], options=LONG))
            for _ in range(64)
        ]
        await eventually(lambda: num_running(served) > 4)
        os.kill(lane, signal.SIGKILL)
        codes = await codes_of(calls)
        assert codes.count("UNAVAILABLE") in range(1, 6)  # what it had in its rows
        assert len(codes) - codes.count("UNAVAILABLE") == sum(code.startswith("one two") for code in codes)
        await eventually(lambda: len(pids_of(served)) == 2)
        answer = await served.translation.Translate(Request(model="spell", inputs=["12"] * 64))
        assert len(answer.translations) == 64
        assert served.num_accepted("spell") == 0


async def test_our_client_repeats_what_a_killed_lane_held() -> None:
    async with (
        serving(BUNDLES, *IN_PROCESSES) as served,
        AsyncClient(f"127.0.0.1:{served.server.port}") as client,
    ):
        calls = [
            asyncio.create_task(client.translate(["12"], model="spell", min_tokens=80)) for _ in range(50)
        ]
        await eventually(lambda: num_running(served) > 0)
        for pid in pids_of(served).values():
            os.kill(pid, signal.SIGKILL)
        for answers in await asyncio.gather(*calls):
            assert answers[0].text.startswith("one two")


async def test_a_killed_host_is_replaced_and_waiting_calls_go_on() -> None:
    async with serving(BUNDLES, *IN_PROCESSES, "engine.slots_per_lane=4") as served:
        await served.translation.Translate(Request(model="spell", inputs=["12"]))
        num_sockets, host = open_files()["socket"], models_of(served).host.pid
        calls = [
            served.translation.Translate(Request(model="spell", inputs=["12"], options=LONG))
            for _ in range(64)
        ]
        await eventually(lambda: num_running(served) > 4)
        began = time.monotonic()
        os.kill(host, signal.SIGKILL)
        codes = await codes_of(calls)
        assert codes.count("UNAVAILABLE") in range(1, 12)
        assert len(codes) - codes.count("UNAVAILABLE") == sum(code.startswith("one two") for code in codes)
        answer = await served.translation.Translate(Request(model="spell", inputs=["12"]))
        print(f"answers again after {time.monotonic() - began:.2f} s")
        assert answer.translations[0].text == "one two"
        assert members(host) == []
        await eventually(lambda: len(pids_of(served)) == 2)
        assert open_files()["socket"] == num_sockets


async def test_a_model_that_cannot_be_loaded_again_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "spell").mkdir()
    (tmp_path / "spell" / "1").symlink_to(BUNDLES / "spell" / "1")
    with running(*ports(tmp_path), "--set", IN_PROCESSES[0]) as server:
        server.wait_for("serving")
        [host] = psutil.Process(server.process.pid).children()
        (tmp_path / "spell" / "1").unlink()
        (tmp_path / "spell" / "2").symlink_to(BUNDLES / "spell" / "2")
        host.kill()
        assert server.wait_for_end() == 1
    [broken] = [each for each in server.events if each["event"] == "broken"]
    assert broken["error"].startswith("spell/1 was served and cannot be loaded again")


def test_a_second_signal_ends_everything_at_once() -> None:
    with running(*ports(), "--set", IN_PROCESSES[0], "--set", "server.drain_delay_s=60") as server:
        server.wait_for("serving")
        [host] = psutil.Process(server.process.pid).children()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 128 + signal.SIGTERM
        end_s = time.monotonic() + PATIENCE_S
        while any(is_running(pid) for pid in members(host.pid)):
            assert time.monotonic() < end_s


def test_ctrl_c_in_a_terminal_finishes_what_runs() -> None:
    """The terminal sends the signal to the whole process group, from which host and lanes are absent."""
    with running(*ports(), "--set", IN_PROCESSES[0], program="import os; os.setpgid(0, 0)") as server:
        port = server.wait_for("serving")["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            from dragoman.v1 import translation_pb2_grpc

            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            request = Request(model="spell", inputs=["12"] * 128, options=LONG)
            calls = [stub.Translate.future(request) for _ in range(4)]
            assert stub.Translate(Request(model="spell", inputs=["1"]), timeout=PATIENCE_S)
            os.killpg(server.process.pid, signal.SIGINT)
            for call in calls:
                assert len(call.result(PATIENCE_S).translations) == 128
        assert server.wait_for_end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_host_loads(number: signal.Signals) -> None:
    program = """
import dragoman.server.models.spawning as spawning
spawning.HOST_MODULE = "tests.integration.endless_host"
"""
    with running(*ports(), "--set", IN_PROCESSES[0], program=program) as server:
        server.wait_for("endless")
        server.process.send_signal(number)
        assert server.wait_for_end() == 0
        assert server.events[-1]["event"] == "stopped"


def test_a_wrong_setting_leaves_no_host_behind() -> None:
    before = psutil.Process().children()
    assert main(["serve", "--set", "engine.lanes=0"]) == 2
    assert psutil.Process().children() == before
