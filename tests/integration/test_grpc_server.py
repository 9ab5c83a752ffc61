"""The server under the services: it takes up many calls in one turn of the event loop."""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys
import time
from typing import Any

import grpc
import grpc.aio
import pytest

from dragoman.server.fronts.grpc.server import NUM_ACCEPTING, make_server

METHOD = "/test.Service/Wait"


async def test_calls_are_taken_up_together_while_the_loop_is_busy() -> None:
    """A turn of a busy loop lasts milliseconds: fewer turns than calls have to be enough."""
    num_calls = 4 * NUM_ACCEPTING
    num_begun = num_turns = 0
    everybody = asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        nonlocal num_begun
        num_begun += 1
        if num_begun == num_calls:
            everybody.set()
        await everybody.wait()
        return request

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(wait)
    crashes: list[BaseException] = []
    server = make_server([], crashes.append)
    server.add_registered_method_handlers("test.Service", {"Wait": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    arrived = asyncio.create_task(_call(port, num_calls))
    while not everybody.is_set():
        num_turns += num_begun > 0
        time.sleep(0.005)  # noqa: ASYNC251  what else the loop has to do in one turn
        await asyncio.sleep(0)
    answers = await arrived
    await server.stop(None)
    assert answers == [str(index).encode() for index in range(num_calls)]
    assert num_turns < num_calls
    assert crashes == []


async def test_a_stopped_server_takes_up_no_call_and_leaves_no_task() -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return request

    server = make_server([], lambda error: None)
    server.add_registered_method_handlers(
        "test.Service", {"Wait": grpc.unary_unary_rpc_method_handler(answer)}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    before = asyncio.all_tasks()
    await server.start()
    assert await _call(port, 3) == [b"0", b"1", b"2"]
    await server.stop(None)
    for _ in range(10):
        await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if "_accept" in repr(task)}
    assert left == set()


def test_a_call_that_its_client_cancels_leaves_nothing_behind() -> None:
    """grpcio leaves about a kilobyte (grpc/grpc#43360), in its client and in its server together."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library does not say how much is allocated")
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.cancelled_calls"],
        stdout=subprocess.PIPE, timeout=120, check=True, text=True,
    )  # fmt: skip
    assert abs(int(done.stdout)) < 300


async def _call(port: int, num_calls: int) -> list[bytes]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        return await asyncio.gather(*(ask(str(index).encode(), timeout=30) for index in range(num_calls)))
