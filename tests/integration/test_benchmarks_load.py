"""The load generator of the service benchmark against a real gRPC server."""

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from benchmarks.serving.load import Service, answers_of, closed_loop, open_loop, unloaded_latency


@pytest.fixture
def service() -> Iterator[Service]:
    """Answers in upper case, after 20 ms; fails for `bad`."""
    started, stop = threading.Event(), threading.Event()
    ports: list[int] = []

    async def answer(request: bytes, context: Any) -> bytes:
        if request == b"bad":
            await context.abort(grpc.StatusCode.INTERNAL, "as asked")
        await asyncio.sleep(0.02)
        return request.upper()

    async def serve() -> None:
        server = grpc.aio.server()
        method: Any = grpc.unary_unary_rpc_method_handler(answer)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Say": method})])
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        started.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(None)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(20)
    yield Service("echo", f"127.0.0.1:{ports[0]}", "/test.Echo/Say", [b"one", b"two", b"bad"])
    stop.set()
    thread.join()


def test_an_open_loop_waits_for_nobody_and_counts_failures(service: Service) -> None:
    load = open_loop(service, rate=200.0, duration_s=0.5, seed=3)
    num_requests = len(load.latencies_s)
    assert 60 < num_requests < 140  # one at a time would have made 25
    assert load.num_failed == num_requests // 3
    assert load.percentile(0.1) >= 0.02
    assert load.seconds >= 0.5
    again = open_loop(service, rate=200.0, duration_s=0.5, seed=3)
    assert len(again.latencies_s) == num_requests  # the seed decides


def test_one_call_at_a_time_and_what_it_answers(service: Service) -> None:
    assert answers_of(service, 2) == [b"ONE", b"TWO"]
    assert 0.02 <= unloaded_latency(service, 2) < 5.0


def test_callers_in_a_closed_loop_wait_for_their_answers(service: Service) -> None:
    fine = dataclasses.replace(service, requests=[b"one", b"two"])
    load = closed_loop(fine, num_callers=4, duration_s=0.5, num_connections=2)
    assert 20 < load.throughput < 200  # 4 callers, each answered after 20 ms at the earliest
    assert 0.02 <= load.percentile(0.5) <= load.percentile(0.99)
    assert load.cpu_s > 0
    with pytest.raises(RuntimeError, match="echo: a call failed"):
        closed_loop(service, num_callers=1, duration_s=0.5)
