"""A whole server in this process, on free ports, with the tiny bundles; and a gate to hold its engines at."""

import asyncio
import contextlib
import http.client
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from dragoman.server.app import Server
from dragoman.server.config import load_settings
from dragoman.server.decoding.candidates import Predictions
from dragoman.server.execution.rows import Rows
from dragoman.server.models.served_model import ServedModel
from dragoman.v1 import generation_pb2_grpc, model_pb2_grpc, translation_pb2_grpc

BUNDLES = Path(__file__).parents[1] / "fixtures" / "bundles"
OLD_BUNDLES = Path(__file__).parents[1] / "fixtures" / "schema_1"
PATIENCE_S = 20.0


class Gate:
    """Holds every lane before its next step while closed; a lane then takes one step at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        self._is_open = True
        self._num_allowed = 0
        self._held = threading.Event()
        decode = Rows.decode

        def gated(rows: Rows, num_rows: int, num_best: int = 1, *, needs_all: bool = True) -> Predictions:
            self._pass()
            return decode(rows, num_rows, num_best, needs_all=needs_all)

        has_room_for_steps = Rows.has_room_for_steps

        def one_by_one(rows: Rows, num_rows: int) -> bool:
            return self._is_open and has_room_for_steps(rows, num_rows)

        monkeypatch.setattr(Rows, "decode", gated)
        monkeypatch.setattr(Rows, "has_room_for_steps", one_by_one)

    def _pass(self) -> None:
        with self._changed:
            if self._is_open:
                return
            if not self._num_allowed:
                self._held.set()
            moved = self._changed.wait_for(lambda: self._is_open or self._num_allowed, PATIENCE_S)
            assert moved, "the test never opened the gate"
            self._num_allowed = max(0, self._num_allowed - 1)

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        self._held.clear()
        with self._changed:
            self._is_open, self._num_allowed = False, 0
        try:
            yield
        finally:
            with self._changed:
                self._is_open = True
                self._changed.notify_all()

    def allow(self, num_steps: int) -> None:
        """Let so many steps through the closed gate."""
        with self._changed:
            self._num_allowed += num_steps
            self._changed.notify_all()

    async def wait_for_lane(self) -> None:
        """Return when a lane has come to the closed gate: its sequences have their rows."""
        assert await asyncio.to_thread(self._held.wait, PATIENCE_S)


@dataclass
class Served:
    """A running server and ways to ask it."""

    server: Server
    channel: grpc.aio.Channel

    @property
    def translation(self) -> "translation_pb2_grpc.TranslationServiceAsyncStub":
        return translation_pb2_grpc.TranslationServiceStub(self.channel)

    @property
    def generation(self) -> "generation_pb2_grpc.GenerationServiceAsyncStub":
        return generation_pb2_grpc.GenerationServiceStub(self.channel)

    @property
    def models(self) -> "model_pb2_grpc.ModelServiceAsyncStub":
        return model_pb2_grpc.ModelServiceStub(self.channel)

    def model(self, name: str) -> ServedModel:
        """The model as the server's first front has it."""
        with self.server._registry.lease(name) as lease:
            return lease.model

    def metric(self, name: str, **labels: str) -> float:
        value = self.server.metrics.registry.get_sample_value(f"dragoman_{name}", labels)
        return 0.0 if value is None else value

    def rejected(self, model: str, stage: str, reason: str) -> float:
        """Calls that were refused or given up."""
        return self.metric("rejected_requests_total", model=model, stage=stage, reason=reason)

    def codes(self) -> dict[tuple[str, str, str], float]:
        """requests_total by (model, method, code), without zeros."""
        return {
            (sample.labels["model"], sample.labels["method"], sample.labels["code"]): sample.value
            for family in self.server.metrics.registry.collect()
            if family.name == "dragoman_requests"
            for sample in family.samples
            if sample.name.endswith("_total") and sample.value
        }

    def num_accepted(self, model: str) -> float:
        """Inputs that run or wait."""
        return self.metric("requests_running", model=model) + self.metric("requests_waiting", model=model)

    async def http(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(http_get, self.server.metrics_port, path)


def http_get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


@contextlib.asynccontextmanager
async def serving(models: Path = BUNDLES, *overrides: str) -> AsyncIterator[Served]:
    """Start a server with one lane and stop it."""
    settings = load_settings(
        options={
            "models.directory": models,
            "server.port": 0,
            "server.metrics_port": 0,
            "engine.lanes": 1,
            "engine.lanes_run_in": "threads",  # within reach of what a test patches
            "engine.threads_per_lane": 1,
        },
        overrides=overrides,
    )
    server = Server(settings)
    try:
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Served(server, channel)
    finally:
        await server.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells: a server's bookkeeping after its answer has been received."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def one_version(folder: Path, *bundles: str) -> Path:
    """A models folder holding copies of the bundles named like `spell/1`."""
    for bundle in bundles:
        shutil.copytree(BUNDLES / bundle, folder / bundle)
    return folder


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    """The error that a unary or streaming call ends with."""

    async def finish() -> None:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish()
    return caught.value


async def detail_of(call: Any, kind: type[Any]) -> tuple[grpc.aio.AioRpcError, Any]:
    """The error that a call ends with, and the detail it carries."""
    error = await error_of(call)
    status = await rpc_status.aio.from_call(call)
    assert status is not None
    message = kind()
    assert any(detail.Unpack(message) for detail in status.details)
    return error, message


async def violations_of(call: Any) -> dict[str, str]:
    """What an INVALID_ARGUMENT says of each field."""
    error, bad_request = await detail_of(call, error_details_pb2.BadRequest)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return {each.field: each.description for each in bad_request.field_violations}
