"""The load generator against a real gRPC server."""

import asyncio
import math
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from tests.integration.scripted_server import Failure, ScriptedServer, invalid, running_server

from dragoman.client import NotFoundError
from dragoman.client.load import generator
from dragoman.client.load.generator import LoadPlan, Progress, run_load
from dragoman.common.errors import OperationError
from dragoman.v1 import translation_pb2

NUM_IN_STALL = 6
"""Calls that wait for the server at the same time. It takes up eight at once."""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running_server() as running:
        yield running


async def test_a_stall_shows_in_the_latency_of_all_who_came_meanwhile(server: ScriptedServer) -> None:
    """Coordinated omission: a generator that waits for the server would send one slow request only."""
    plan = LoadPlan(
        target=server.target,
        model="dates",
        inputs=["un"],
        rate=40.0,
        warm_up_s=0.0,
        duration_s=1.5,
        options={},
        seed=5,
    )
    may_answer = threading.Event()

    def stall(request: object) -> None:
        if isinstance(request, translation_pb2.TranslateRequest):
            assert may_answer.wait(timeout=20)

    server.script.refuse = stall
    running = asyncio.ensure_future(run_load(plan))
    assert await asyncio.to_thread(server.script.arrived.acquire, timeout=20)  # the model's name
    first_s = math.inf
    for _ in range(NUM_IN_STALL):
        assert await asyncio.to_thread(server.script.arrived.acquire, timeout=20), "it waits for answers"
        first_s = min(first_s, time.monotonic())
    stalled_s = time.monotonic() - first_s
    may_answer.set()
    report = await running
    assert report.errors == {}
    assert report.latency is not None
    assert report.num_requests >= NUM_IN_STALL
    assert report.latency.max_s >= stalled_s
    assert report.send_lag is not None


async def test_a_closed_loop_has_as_many_requests_as_callers(server: ScriptedServer) -> None:
    most, running, lock = 0, 0, threading.Lock()
    seen: list[Progress] = []

    def count(request: object) -> None:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        server.script.hold.wait(0.01)
        with lock:
            running -= 1

    server.script.refuse = count  # judges every request, and refuses none
    plan = LoadPlan(
        target=server.target,
        model="stdlib",
        inputs=["a b", "c d e"],
        concurrency=3,
        warm_up_s=0.1,
        duration_s=0.4,
        options={"max_tokens": 9},
    )
    report = await run_load(plan, seen.append)
    assert most <= 3
    assert report.num_requests > 3
    assert report.time_to_first_token is not None
    assert report.output_tokens_per_s > 0
    assert {request.prompt for request in server.script.requests[1:]} == {"a b", "c d e"}
    assert all(request.options.max_tokens == 9 for request in server.script.requests[1:])
    assert seen[0].total_s == pytest.approx(0.5)


async def test_errors_are_counted_by_their_code_and_not_tried_again(server: ScriptedServer) -> None:
    def refuse(request: object) -> Failure | None:
        return Failure(grpc.StatusCode.UNAVAILABLE) if len(server.script.requests) % 2 else None

    plan = LoadPlan(
        target=server.target,
        model="dates",
        inputs=["un"],
        concurrency=1,
        warm_up_s=0.0,
        duration_s=0.3,
        options={},
        stream=True,
    )
    server.script.refuse = lambda request: refuse(request) if hasattr(request, "inputs") else None
    report = await run_load(plan)
    assert set(report.errors) == {"UNAVAILABLE"}
    assert report.num_errors == pytest.approx(report.num_requests / 2, abs=1)
    assert report.num_requests == len(server.script.requests) - 1


async def test_an_impossible_rate_ends_at_once(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "MAX_LAG_S", 0.3)
    plan = LoadPlan(
        target=server.target, model="dates", inputs=["un"], rate=1e6, duration_s=600.0, options={}
    )
    async with asyncio.timeout(60):
        with pytest.raises(OperationError, match=r"is the limit, not the server: of 1,000,000 requests/s it"):
            await run_load(plan)


async def test_refusals_tell_their_reason(server: ScriptedServer) -> None:
    server.script.refuse = lambda request: (
        invalid("inputs[0]", "is odd") if hasattr(request, "inputs") else None
    )
    plan = LoadPlan(
        target=server.target,
        model="dates",
        inputs=["un"],
        concurrency=1,
        warm_up_s=0.0,
        duration_s=0.1,
        options={},
    )
    report = await run_load(plan)
    assert report.num_errors == report.num_requests > 0
    assert report.error_messages == {"INVALID_ARGUMENT": "inputs[0]: is odd"}


async def test_a_model_that_is_not_there_is_no_load(server: ScriptedServer) -> None:
    plan = LoadPlan(target=server.target, model="nope", inputs=["un"], concurrency=1, options={})
    with pytest.raises(NotFoundError):
        await run_load(plan)
