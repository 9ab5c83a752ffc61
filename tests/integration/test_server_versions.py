"""Versions that come and go while a server answers, in both layouts: no call fails, and nothing is left behind."""

import asyncio
import contextlib
import gc
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import structlog
from tests.integration.process_tools import members, open_files
from tests.integration.serving import (
    BUNDLES,
    PATIENCE_S,
    Gate,
    Served,
    error_of,
    eventually,
    one_version,
    serving,
)
from tests.integration.test_server_fronts import samples
from tests.integration.test_server_processes import models_of, pids_of
from tests.unit.damaged_bundles import copy_of, set_value

from dragoman.common.errors import DragomanError
from dragoman.common.memory import available_memory, proportional_bytes
from dragoman.server.errors import BundleError, ResourceUnavailable
from dragoman.server.models.running import RunningModels
from dragoman.server.processes.linux import trim_memory
from dragoman.v1 import decoding_pb2, translation_pb2, translation_pb2_grpc

Request = translation_pb2.TranslateRequest
LONG = decoding_pb2.DecodingOptions(min_tokens=80)
PROCESSES = ("engine.lanes_run_in=processes", "engine.lanes=2")
THREADS = ("engine.lanes_run_in=threads", "engine.lanes=2")
TWO_FRONTS = (*PROCESSES, "server.fronts=2")


def running(served: Served) -> RunningModels:
    models = served.server._models
    assert models is not None
    return models


async def load(served: Served, name: str, version: str) -> None:
    await asyncio.wait_for(running(served).load_version(name, version), PATIENCE_S)


async def unload(served: Served, name: str, version: str) -> None:
    await asyncio.wait_for(running(served).unload_version(name, version), PATIENCE_S)


def versions_of(served: Served) -> list[str]:
    return [f"{model.name}/{model.version}" for model in served.server._registry.models]


async def answer(served: Served, text: str, **request: Any) -> str:
    call = served.translation.Translate(Request(model="spell", inputs=[text], **request), timeout=PATIENCE_S)
    translated = await call
    return translated.translations[0].text


async def repeated_answer(served: Served, text: str, **request: Any) -> str:
    """What a caller gets that repeats a call where that is safe."""
    while True:
        try:
            return await answer(served, text, **request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


@contextlib.asynccontextmanager
async def callers(served: Served, num_callers: int = 6) -> AsyncIterator[list[str]]:
    """Ask again and again, each caller on a connection of its own; what goes wrong is raised. Gives the answers."""
    answers: list[str] = []
    is_over = False

    async def ask() -> None:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.server.port}", options) as channel:
            stub: translation_pb2_grpc.TranslationServiceAsyncStub = (
                translation_pb2_grpc.TranslationServiceStub(channel)
            )
            request = Request(model="spell", inputs=["12", "907"])
            while not is_over:
                translated = await stub.Translate(request, timeout=PATIENCE_S)
                answers.append(" ".join(each.text for each in translated.translations))

    asking = [asyncio.create_task(ask()) for _ in range(num_callers)]
    try:
        yield answers
    finally:
        is_over = True
        await asyncio.gather(*asking)


@pytest.mark.parametrize("layout", [PROCESSES, TWO_FRONTS, THREADS], ids=["processes", "fronts", "threads"])
async def test_a_version_takes_the_place_of_another_and_no_call_fails(
    layout: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving(one_version(tmp_path, "spell/1", "count/1"), *layout) as served:
        shutil.copytree(BUNDLES / "spell" / "2", tmp_path / "spell" / "2")
        async with callers(served) as answers:
            for num_answers, change, version in (
                (50, load, "2"),
                (100, unload, "1"),
                (150, load, "1"),
                (200, unload, "2"),
            ):
                await eventually(lambda num=num_answers: len(answers) >= num)  # type: ignore[misc]
                await change(served, "spell", version)
            await eventually(lambda: len(answers) >= 250)
        assert set(answers) == {"one two nine zero seven"}
        assert versions_of(served) == ["count/1", "spell/1"]
        ends = samples(served.server.metrics_port, "requests_total")  # all fronts' calls
        assert {code for (code, _, _), num_calls in ends.items() if num_calls} == {"OK"}
        if layout is not THREADS:
            host = models_of(served).host.pid
            await eventually(lambda: sorted(members(host)) == sorted([host, *pids_of(served).values()]))
            assert len(pids_of(served)) == 2
        assert served.metric("threads") == 2
        assert (
            served.metric("requests_running", model="spell")
            == served.metric("requests_waiting", model="spell")
            == 0
        )


@pytest.mark.parametrize("layout", [PROCESSES, THREADS], ids=["processes", "threads"])
async def test_what_cannot_be_served_changes_nothing_and_says_why(
    layout: tuple[str, ...], tmp_path: Path
) -> None:
    models = one_version(tmp_path, "spell/1")
    damaged = copy_of("bundles/spell/2", tmp_path)
    set_value(damaged, "golden_examples/0/log_probability", -99.0)
    torn = copy_of("bundles/count/1", tmp_path)
    (torn / "decode.onnx").write_bytes(b"half of it")
    async with serving(models, *layout) as served:
        async with callers(served) as answers:
            with pytest.raises(BundleError, match=r"golden example .* now has log-probability"):
                await load(served, "spell", "2")
            with pytest.raises(BundleError, match=r"decode\.onnx"):
                await load(served, "count", "1")
            with pytest.raises(ResourceUnavailable, match="spell/1 is loaded already"):
                await load(served, "spell", "1")
            with pytest.raises(ResourceUnavailable, match="spell/3 is not loaded"):
                await unload(served, "spell", "3")
            for name, version in (("spell", "../1"), ("..", "1"), ("spell", ""), ("a/b", "1")):
                with pytest.raises(DragomanError, match="is not in the models folder"):
                    await load(served, name, version)
            await eventually(lambda: len(answers) > 20)
        assert set(answers) == {"one two nine zero seven"}
        assert versions_of(served) == ["spell/1"]


@pytest.mark.parametrize("layout", [PROCESSES, THREADS], ids=["processes", "threads"])
async def test_a_version_that_does_not_fit_beside_the_others_is_refused_with_the_numbers(
    layout: tuple[str, ...], tmp_path: Path
) -> None:
    copy_of("bundles/spell/1", tmp_path)
    copy_of("bundles/count/1", tmp_path)
    copy_of("bundles/count/2", tmp_path)
    (tmp_path / "count" / "2").rename(tmp_path / "later")
    available = available_memory()
    assert available is not None
    cache = f"engine.prefix_cache_bytes={int(0.6 * available.num_bytes)}"
    async with serving(tmp_path, *layout, cache) as served:
        (tmp_path / "later").rename(tmp_path / "count" / "2")
        said = r"count/2: .*engine\.prefix_cache_bytes = \d+ takes .* of it granted: lower one of them"
        with pytest.raises(ResourceUnavailable, match=said):
            await load(served, "count", "2")
        assert await answer(served, "12") == "one two"
        assert versions_of(served) == ["count/1", "spell/1"]
        await unload(served, "count", "1")
        await load(served, "count", "2")
        assert versions_of(served) == ["count/2", "spell/1"]


async def test_a_lane_that_retires_finishes_its_streams(tmp_path: Path) -> None:
    async with serving(one_version(tmp_path, "spell/1"), *PROCESSES, "engine.slots_per_lane=2") as served:
        copy_of("bundles/spell/2", tmp_path)
        before = set(pids_of(served).values())
        request = Request(model="spell", inputs=["12"] * 16, options=LONG)
        streams = [served.translation.StreamTranslate(request, timeout=PATIENCE_S) for _ in range(8)]

        async def read(stream: Any) -> list[str]:
            texts = [""] * 16
            async for each in stream:
                texts[each.index] += each.text_delta
            return texts

        reading = [asyncio.create_task(read(stream)) for stream in streams]
        await eventually(
            lambda: served.server._registry.lease("spell").model.engine.occupancy().num_running > 2
        )
        with structlog.testing.capture_logs() as log:
            await load(served, "spell", "2")
            texts = await asyncio.gather(*reading)
            await eventually(lambda: not any(psutil.pid_exists(pid) for pid in before))
        assert len({text for each in texts for text in each}) == 1
        assert texts[0][0].startswith("one two")
        assert not [each for each in log if each["log_level"] in {"warning", "error"}]


async def test_calls_that_outlast_their_time_fail_and_the_version_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = Gate(monkeypatch)
    overrides = ("engine.lanes_run_in=threads", "server.drain_timeout_s=0.2")
    async with serving(one_version(tmp_path, "spell/1", "spell/2"), *overrides) as served:
        await load(served, "spell", "1")
        with gate.closed():
            call = served.translation.Translate(Request(model="spell", version="2", inputs=["12"]))
            await gate.wait_for_lane()
            unloading = asyncio.create_task(unload(served, "spell", "2"))
            error = await error_of(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "spell/2 was unloaded" in (error.details() or "")
        await unloading
        assert await answer(served, "12") == "one two"
        error = await error_of(
            served.translation.Translate(Request(model="spell", version="2", inputs=["1"]))
        )
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_killed_host_leaves_the_versions_that_were_served_to_the_next(tmp_path: Path) -> None:
    async with serving(one_version(tmp_path, "spell/1"), *TWO_FRONTS) as served:
        copy_of("bundles/spell/2", tmp_path)
        copy_of("bundles/count/1", tmp_path)
        await load(served, "spell", "2")
        for _ in range(2):
            host = models_of(served).host.pid
            changing = asyncio.create_task(load(served, "count", "1"))
            await asyncio.sleep(0)
            os.kill(host, signal.SIGKILL)
            with contextlib.suppress(DragomanError):
                await changing
                await unload(served, "count", "1")
            for version in ("1", "2"):
                assert await repeated_answer(served, "12", version=version) == "one two"
            assert versions_of(served) == ["spell/1", "spell/2"]
        await load(served, "count", "1")
        await unload(served, "spell", "1")
        os.kill(models_of(served).host.pid, signal.SIGKILL)
        assert await repeated_answer(served, "12") == "one two"
        assert versions_of(served) == ["count/1", "spell/2"]


def group(served: Served) -> list[int]:
    """The processes that have models: the host and its lanes; with lanes in threads this one."""
    models: Any = running(served)
    return members(models.host.pid) if hasattr(models, "host") else [os.getpid()]


def memory_of(served: Served) -> int:
    """Memory of the test's process, which is the server, and of the others. Garbage is no leak."""
    gc.collect()
    trim_memory()
    return sum(map(proportional_bytes, {os.getpid(), *group(served)}))


@pytest.mark.parametrize("layout", [PROCESSES, THREADS], ids=["processes", "threads"])
async def test_twenty_loads_and_unloads_leave_nothing_behind(layout: tuple[str, ...], tmp_path: Path) -> None:
    rows = "engine.slots_per_lane=128"
    async with serving(one_version(tmp_path, "spell/1"), *layout, rows) as served:
        copy_of("bundles/spell/2", tmp_path)
        # A lane whose rows have been used once has touched their memory.
        request = Request(model="spell", inputs=["12"] * 128, version="2")

        async def once() -> None:
            await load(served, "spell", "2")
            await asyncio.gather(*(served.translation.Translate(request) for _ in range(2)))
            await unload(served, "spell", "2")

        for _ in range(2):
            await once()
        await eventually(lambda: len(group(served)) == (3 if layout is PROCESSES else 1))
        files, memory = open_files(), memory_of(served)
        host_files = psutil.Process(group(served)[0]).num_fds()
        for _ in range(20):
            await once()
        await eventually(lambda: len(group(served)) == (3 if layout is PROCESSES else 1))
        await eventually(lambda: open_files() <= files)
        await eventually(lambda: psutil.Process(group(served)[0]).num_fds() <= host_files)
        grown = memory_of(served) - memory
        print(f"grown by {grown / 2**20:.1f} MiB from {memory / 2**20:.1f}")
        assert grown < 16 << 20, "one load touches more"
