"""Further fronts: started, killed, replaced, drained, ended; with lanes of their own, as threads."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from tests.integration.process_tools import open_files
from tests.integration.serving import BUNDLES, PATIENCE_S, error_of, eventually
from tests.integration.test_server_open_inference import Stub

from dragoman.inference import grpc_service_pb2
from dragoman.server.config import ServerSettings, load_settings
from dragoman.server.fronts.processes import supervisor as supervisor_module
from dragoman.server.fronts.processes.supervisor import Fronts
from dragoman.server.models.changes import ForbiddenChanges
from dragoman.server.operations.metrics import Metrics
from dragoman.server.operations.shared_values import HEARTBEAT
from dragoman.v1 import model_pb2, model_pb2_grpc, translation_pb2, translation_pb2_grpc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several fronts need Linux")

MODULE = "tests.integration.bundle_front"


def settings(*overrides: str) -> ServerSettings:
    return load_settings(
        options={"models.directory": BUNDLES, "engine.lanes": 1, "engine.threads_per_lane": 1},
        overrides=overrides,
    )


@dataclass
class Server:
    """The server process, as far as its further fronts know it."""

    fronts: Fronts
    metrics: Metrics
    port: int
    engines: list[socket.socket]

    def pids(self) -> list[int]:
        return self.fronts.pids()

    def page(self) -> dict[str, dict[tuple[str, ...], float]]:
        families = text_string_to_metric_families(generate_latest(self.metrics.page).decode())
        return {
            name: {
                tuple(sorted(each.labels.values())): each.value
                for each in family.samples
                if each.name == name
            }
            for family in families
            for name in {each.name for each in family.samples}
        }

    @property
    def num_answered(self) -> float:
        return self.page()["dragoman_requests_total"].get(("OK", "Translate", "spell"), 0.0)

    def channel(self) -> grpc.aio.Channel:
        """One with a connection of its own."""
        return grpc.aio.insecure_channel(
            f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )


@contextlib.asynccontextmanager
async def running(num_fronts: int = 2, *overrides: str, module: str = MODULE) -> AsyncIterator[Server]:
    metrics = Metrics(1.0)
    engines: list[socket.socket] = []

    def connect_engine() -> socket.socket:
        ours, theirs = socket.socketpair()
        engines.append(sockets.enter_context(ours))
        return theirs

    with socket.socket() as holder, contextlib.ExitStack() as sockets:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        fronts = Fronts(settings(*overrides), num_fronts, metrics, connect_engine, module)
        fronts.start()
        try:
            yield Server(fronts, metrics, port, engines)
        finally:
            await fronts.close()


async def translate(channel: grpc.aio.Channel, text: str = "4071") -> str:
    stub = translation_pb2_grpc.TranslationServiceStub(channel)
    request = translation_pb2.TranslateRequest(model="spell", inputs=[text])
    answer = await stub.Translate(request, timeout=PATIENCE_S)
    return answer.translations[0].text


async def test_many_connections_are_divided_and_their_counts_are_one_page() -> None:
    async with running() as server:
        await server.fronts.listen(server.port)
        for _ in range(24):
            async with server.channel() as channel:
                assert await translate(channel)
        assert server.num_answered == 24
        counts = [place.process.values.read() for place in server.fronts._fronts if place.process is not None]
        each = [
            sum(value for key, value in values.items() if '"dragoman_requests_total"' in key)
            for values in counts
        ]
        assert sum(each) == 24
        assert all(each), f"one front got all connections: {each}"  # by chance once in 8 million times
        await eventually(lambda: server.page()["dragoman_calls_taken_up_total"][()] == 24)
        processes = {labels[0] for labels in server.page()["dragoman_process_pss_bytes"]}
        assert processes == {"front-1", "front-2"}


async def test_one_that_is_killed_is_replaced_and_no_count_is_lost() -> None:
    with capture_logs() as lines:
        async with running() as server:
            await server.fronts.listen(server.port)
            outcomes: Counter[str] = Counter()

            async def call_until(stop: asyncio.Event) -> None:
                while not stop.is_set():
                    async with server.channel() as channel:
                        try:
                            await translate(channel)
                        except grpc.aio.AioRpcError as error:
                            outcomes[error.code().name] += 1
                        else:
                            outcomes["OK"] += 1

            stop = asyncio.Event()
            calling = [asyncio.create_task(call_until(stop)) for _ in range(4)]
            for _ in range(3):
                num_before = outcomes["OK"]
                await eventually(lambda num=num_before: outcomes["OK"] > num + 10)  # type: ignore[misc]
                pids = server.pids()
                os.kill(pids[0], signal.SIGKILL)
                await eventually(lambda pid=pids[0]: pid not in server.pids())  # type: ignore[misc]
                await eventually(lambda: all(place.is_serving.is_set() for place in server.fronts._fronts))
            stop.set()
            await asyncio.gather(*calling)
            assert set(outcomes) <= {"OK", "UNAVAILABLE"}
            # A call may be counted and its front die before the answer has left.
            assert 0 <= server.num_answered - outcomes["OK"] <= outcomes["UNAVAILABLE"]
            # Gauges are a quarter of a second old.
            await eventually(lambda: server.page()["dragoman_requests_waiting"]["spell",] == 0)
    died = [line for line in lines if line["event"] == "front_died"]
    assert [line["how"] for line in died] == ["killed by SIGKILL"] * 3
    assert {line["front"] for line in died} == {1}


async def test_what_fails_oddly_in_the_server_process_is_answered_in_the_front(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class FailingChanges(ForbiddenChanges):
        async def load(self, _name: str, _version: str = "") -> None:
            raise KeyError("surprise")

    def fail(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(supervisor_module, "read_statistics", fail)
    with capture_logs() as lines:
        async with running(1, "models.allow_changes=true") as server:
            server.fronts.changes = FailingChanges()
            await server.fronts.listen(server.port)
            async with server.channel() as channel:
                loading = model_pb2_grpc.ModelServiceStub(channel).LoadModel(
                    model_pb2.LoadModelRequest(model="spell"), timeout=PATIENCE_S
                )
                assert (await error_of(loading)).code() is grpc.StatusCode.INTERNAL
                inference: Any = Stub(channel)
                for _ in range(2):
                    asking = inference.ModelStatistics(
                        grpc_service_pb2.ModelStatisticsRequest(), timeout=PATIENCE_S
                    )
                    assert (await error_of(asking)).code() is grpc.StatusCode.INTERNAL
                assert await translate(channel) == "four zero seven one"
    events = [each["event"] for each in lines if "failed" in each["event"]]
    assert events == ["change_failed", "statistics_failed", "statistics_failed"]


async def test_many_deaths_leave_nothing_behind() -> None:
    async with running(1) as server:
        await server.fronts.listen(server.port)
        [place] = server.fronts._fronts
        files = open_files()
        for _ in range(3):
            [pid] = server.pids()
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda pid=pid: server.pids() not in ([pid], []))  # type: ignore[misc]
            await eventually(place.is_serving.is_set)
            server.engines.pop().close()
        assert open_files() == files
        assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


async def test_a_drain_lets_running_calls_end_and_tells_every_watcher() -> None:
    with capture_logs() as lines:
        async with running() as server, contextlib.AsyncExitStack() as channels:
            await server.fronts.listen(server.port)
            watches: list[Any] = []
            for _ in range(16):
                channel = await channels.enter_async_context(server.channel())
                health: Any = health_pb2_grpc.HealthStub(channel)
                watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
                watches.append(watch)
            draining = asyncio.create_task(server.fronts.drain())
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await draining
            assert server.pids() == []
    assert {line["front"] for line in lines if line["event"] == "draining"} == {1, 2}
    assert not [line for line in lines if line["event"] in {"front_died", "front_killed"}]


async def test_one_that_does_not_drain_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "DRAIN_MARGIN_S", 0.2)
    with capture_logs() as lines:
        async with running(1, "server.drain_timeout_s=0.1") as server:
            await server.fronts.listen(server.port)
            [pid] = server.pids()
            os.kill(pid, signal.SIGSTOP)
            await server.fronts.drain()
            assert not psutil.pid_exists(pid)
    assert [line["front"] for line in lines if line["event"] == "front_killed"] == [1]


async def test_one_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "WATCH_INTERVAL_S", 0.4)  # longer than a sign of life takes
    monkeypatch.setattr(supervisor_module, "MAX_SILENT_LOOKS", 1000)  # a front that loads gives none
    with capture_logs() as lines:
        async with running(1) as server:
            await server.fronts.listen(server.port)
            [pid] = server.pids()
            front = server.fronts._fronts[0].process
            assert front is not None
            await eventually(lambda: HEARTBEAT in front.values.read())
            os.kill(pid, signal.SIGSTOP)
            monkeypatch.setattr(supervisor_module, "MAX_SILENT_LOOKS", 3)
            await eventually(lambda: any(line["event"] == "front_silent" for line in lines))
            monkeypatch.setattr(supervisor_module, "MAX_SILENT_LOOKS", 1000)
            await eventually(lambda: server.pids() not in ([pid], []))
            await server.fronts.listen(server.port)
            async with server.channel() as channel:
                assert await translate(channel)
    assert [line["pid"] for line in lines if line["event"] == "front_silent"] == [pid]


async def test_signals_to_all_processes_are_for_the_server_alone() -> None:
    async with running(1) as server:
        await server.fronts.listen(server.port)
        [pid] = server.pids()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        async with server.channel() as channel:
            assert await translate(channel)
        assert server.pids() == [pid]


async def test_a_new_host_of_the_engine_is_told_to_all() -> None:
    async with running() as server:
        await server.fronts.listen(server.port)
        assert len(server.engines) == 2
        server.fronts.use_engine()
        assert len(server.engines) == 4
        for engine in server.engines[2:]:
            engine.settimeout(PATIENCE_S)
        os.kill(server.pids()[0], signal.SIGKILL)
        assert await asyncio.to_thread(server.engines[2].recv, 1) == b"", "the front had it"


async def test_one_that_cannot_start_is_tried_again_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "MIN_DELAY_S", 0.001)
    monkeypatch.setattr(supervisor_module, "START_S", 0.1)
    with capture_logs() as lines:
        async with running(1, module="tests.integration.no_such_module") as server:
            place = server.fronts._fronts[0]
            place.delay_s = 0.001
            await server.fronts.listen(server.port)
            await eventually(lambda: place.delay_s > 0.005)
    died = [line for line in lines if line["event"] == "front_died"]
    assert len(died) >= 3
    assert {line["how"] for line in died} <= {"exit code 1", "killed by SIGKILL"}
    assert [line["event"] for line in lines].count("fronts_missing") == 1


PARENT = """
import asyncio, os, sys
from tests.integration.test_server_front_processes import running
async def main():
    async with running(2) as server:
        await server.fronts.listen(server.port)
        print("pids", *server.pids(), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_none_outlives_the_server_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as server:
        assert server.stdout is not None
        pids = next(line for line in server.stdout if line.startswith("pids")).split()[1:]
        processes = [psutil.Process(int(pid)) for pid in pids]
        assert len(processes) == 2
        server.kill()
        gone, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive, "they end with the server"
    assert len(gone) == 2
