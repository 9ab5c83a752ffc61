"""Loading, draining and stopping: what is told, what is still answered, what is cut off."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.serving import (
    BUNDLES,
    PATIENCE_S,
    Gate,
    Served,
    error_of,
    eventually,
    http_get,
    one_version,
    serving,
)

from dragoman.client.channel import ChannelSettings
from dragoman.server.app import Server
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import load_settings
from dragoman.server.errors import AddressError, BundleError, ModelsError
from dragoman.v1 import model_pb2, model_pb2_grpc, translation_pb2, translation_pb2_grpc

Request = translation_pb2.TranslateRequest
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(one_version(tmp_path, "spell/1")) as served:
        yield served


def settings_of(models: Path, **options: Any) -> Any:
    return load_settings(
        options={"models.directory": models, "server.port": 0, "server.metrics_port": 0, **options}
    )


async def test_while_loading_it_is_alive_and_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    may_load = threading.Event()
    read = Bundle.read

    def slow_read(folder: Path) -> Bundle:
        assert may_load.wait(PATIENCE_S)
        return read(folder)

    monkeypatch.setattr(Bundle, "read", slow_read)
    server = Server(settings_of(BUNDLES))
    try:
        starting = asyncio.create_task(server.start())
        for path, expected in (("/healthz", 200), ("/readyz", 503), ("/metrics", 200)):
            assert (await asyncio.to_thread(http_get, server.metrics_port, path))[0] == expected
        may_load.set()
        await starting
        assert await asyncio.to_thread(http_get, server.metrics_port, "/readyz") == (200, "serving\n")
    finally:
        may_load.set()
        await server.close()


async def test_told_to_stop_while_loading_it_never_serves() -> None:
    server, stop = Server(settings_of(BUNDLES)), asyncio.Event()
    stop.set()
    await server.start(stop)
    await server.drain()
    await server.close()
    assert server.port == 0


async def takes_new_calls(port: int) -> bool:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE
        return True


async def test_draining_turns_readiness_off_first_and_finishes_what_runs(tmp_path: Path, gate: Gate) -> None:
    models = one_version(tmp_path, "spell/1")
    async with serving(models, "server.drain_delay_s=0.2", "server.drain_timeout_s=20") as served:
        health: Any = health_pb2_grpc.HealthStub(served.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="dragoman.v1.TranslationService"))
        assert (await watch.read()).status == SERVING
        with gate.closed():
            running = served.translation.Translate(Request(model="spell", inputs=["12"]))
            await gate.wait_for_lane()
            draining = asyncio.create_task(served.server.drain())
            assert (await watch.read()).status == NOT_SERVING
            assert await served.http("/readyz") == (503, "draining\n")
            assert (await served.http("/healthz"))[0] == 200
            # Balancers have not noticed yet: a new call is still answered.
            late = served.translation.Translate(Request(model="spell", inputs=["21"]))
            await eventually(lambda: served.metric("input_tokens_total", model="spell") == 6)
            # The lane stands still, so both calls outlive the delay, after which new ones are refused.
            async with asyncio.timeout(PATIENCE_S):
                while await takes_new_calls(served.server.port):
                    pass
            done, _ = await asyncio.wait([draining], timeout=0.5)
            assert not done, "two calls are running"
        assert (await running).translations[0].text == "one two"
        assert (await late).translations[0].text == "two one"
        # The health watcher, who never leaves, does not hold up the end.
        await asyncio.wait_for(draining, 5)
        error = await error_of(served.translation.Translate(Request(model="spell", inputs=["1"])))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_rolling_restart_loses_no_call(tmp_path: Path) -> None:
    """One of two servers drains under steady traffic from our client's channel."""
    models = one_version(tmp_path, "spell/1")
    async with serving(models) as leaving, serving(models) as staying:
        target = f"ipv4:127.0.0.1:{leaving.server.port},127.0.0.1:{staying.server.port}"
        async with grpc.aio.insecure_channel(target, options=ChannelSettings().arguments("")) as channel:
            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            over = asyncio.Event()

            async def ask_on() -> int:
                num_answers = 0
                while not over.is_set():
                    response = await stub.Translate(Request(model="spell", inputs=["5"]))
                    assert response.translations[0].text == "five"
                    num_answers += 1
                return num_answers

            callers = [asyncio.create_task(ask_on()) for _ in range(8)]
            await eventually(lambda: leaving.metric("output_tokens_total", model="spell") > 0)
            await leaving.server.drain()
            after = staying.metric("output_tokens_total", model="spell")
            await eventually(lambda: staying.metric("output_tokens_total", model="spell") > after + 50)
            over.set()
            assert all(await asyncio.gather(*callers))


async def test_what_does_not_finish_in_time_is_cancelled(tmp_path: Path, gate: Gate) -> None:
    async with serving(one_version(tmp_path, "spell/1"), "server.drain_timeout_s=0.1") as served:
        with gate.closed():
            stuck = served.translation.Translate(Request(model="spell", inputs=["12"]))
            await gate.wait_for_lane()
            await asyncio.wait_for(served.server.drain(), 5)
            error = await error_of(stuck)
        assert error.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
        assert served.codes() == {("spell", "Translate", "CANCELLED"): 1.0}


async def test_draining_when_nothing_runs_is_immediate(served: Served) -> None:
    await asyncio.wait_for(served.server.drain(), 2)


@pytest.mark.parametrize("which", ["port", "metrics_port"])
async def test_a_port_in_use_is_one_line(served: Served, which: str) -> None:
    taken = getattr(served.server, which)
    with pytest.raises(AddressError, match=f"127.0.0.1:{taken}: Address already in use"):
        Server(settings_of(BUNDLES, **{f"server.{which}": taken}))


async def start(models: Path) -> None:
    server = Server(settings_of(models))
    try:
        await server.start()
    finally:
        await server.close()


async def test_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelsError, match=r"cannot read the models folder .*nope: No such file"):
        await start(tmp_path / "nope")
    with pytest.raises(ModelsError, match=r"no models in .*: expected .*/<name>/<version>/bundle\.json$"):
        await start(tmp_path)
    with pytest.raises(ModelsError, match=f"did you mean {BUNDLES}"):
        await start(BUNDLES / "spell")


async def test_a_corrupt_bundle_names_the_file(tmp_path: Path) -> None:
    models = one_version(tmp_path, "spell/1")
    graph = models / "spell" / "1" / "decode.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(BundleError, match=r"decode\.onnx is corrupt: its SHA-256"):
        await start(models)


async def test_versions_are_numbers_not_words(tmp_path: Path) -> None:
    models = one_version(tmp_path, "spell/1", "spell/2")
    (models / "spell" / "1").rename(models / "spell" / "10")
    (models / "spell" / ".11").mkdir()
    (models / "spell" / "latest").mkdir()
    (models / "lost+found").mkdir()
    async with serving(models) as served:
        response = await served.translation.Translate(Request(model="spell", inputs=["1"]))
        assert response.version == "10"


async def test_two_servers_do_not_share_a_port(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the early check gRPC itself must refuse: SO_REUSEPORT would hand out connections by chance."""
    monkeypatch.setattr("dragoman.server.app.check_free", lambda host, port: None)
    second = Server(settings_of(BUNDLES, **{"server.port": served.server.port}))
    try:
        with pytest.raises(AddressError, match=f"127.0.0.1:{served.server.port}"):
            await second.start()
    finally:
        await second.close()


async def test_clients_may_ping_often(tmp_path: Path) -> None:
    """gRPC's own default answers the third ping of an idle client with GOAWAY too_many_pings."""
    models = one_version(tmp_path, "spell/1")
    pings = [("grpc.keepalive_time_ms", 1000), ("grpc.keepalive_permit_without_calls", 1)]
    pings += [("grpc.http2.max_pings_without_data", 0)]
    async with (
        serving(models, "server.min_ping_interval_s=0.5") as ours,
        serving(models, "server.min_ping_interval_s=300") as strict,
        grpc.aio.insecure_channel(f"127.0.0.1:{ours.server.port}", options=pings) as to_ours,
        grpc.aio.insecure_channel(f"127.0.0.1:{strict.server.port}", options=pings) as to_strict,
    ):
        await asyncio.gather(to_ours.channel_ready(), to_strict.channel_ready())
        await asyncio.wait_for(
            to_strict.wait_for_state_change(grpc.ChannelConnectivity.READY), timeout=PATIENCE_S
        )
        assert to_ours.get_state() is grpc.ChannelConnectivity.READY
