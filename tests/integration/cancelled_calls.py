"""`python -m tests.integration.cancelled_calls`: what a call that its client cancels leaves behind, in bytes.

A client and a server of this process: both run batches of gRPC's core. Printed is the growth of memory that native code
has allocated, for one call: the median of some rounds, as a leak grows in each.
"""

import asyncio
import contextlib
import ctypes
import itertools
import statistics
from typing import Any

import grpc
import grpc.aio

from dragoman.server.fronts.grpc.server import make_server

NUM_CALLS, NUM_ROUNDS = 1_000, 5
NUM_LOOKS = 10  # in a row that find nothing more freed
MESSAGE = b"m" * 300


class _MallocInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def _allocated_bytes() -> int:
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallocInfo
    return int(mallinfo().uordblks)


async def _settled_bytes() -> int:
    """What is allocated once the threads of gRPC's core have freed the calls: on a busy machine that takes long."""
    least, num_looks = _allocated_bytes(), 0
    while num_looks < NUM_LOOKS:
        await asyncio.sleep(0.02)
        now = _allocated_bytes()
        num_looks = 0 if now < least else num_looks + 1
        least = min(least, now)
    return least


async def _cancelled(ask: Any, turns: int) -> None:
    """Begin a call, and cancel it after so many turns of the event loop."""
    call = ask(MESSAGE)
    answer = asyncio.ensure_future(call.code())
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await answer


async def _main() -> None:
    num_running = 0  # calls in the server

    async def wait(request: bytes, context: Any) -> bytes:
        nonlocal num_running
        num_running += 1
        try:
            await asyncio.Event().wait()
        finally:
            num_running -= 1
        return request

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(wait)
    server = make_server([], lambda error: None)
    server.add_registered_method_handlers("test.Service", {"Wait": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test.Service/Wait")
        sizes = []
        for _ in range(NUM_ROUNDS + 1):  # what the first calls of all allocate is no leak
            for number in range(NUM_CALLS):
                await _cancelled(ask, number % 40)
            while num_running:
                await asyncio.sleep(0.01)
            sizes.append(await _settled_bytes())
    await server.stop(None)
    growth = [after - before for before, after in itertools.pairwise(sizes)]
    print(round(statistics.median(growth) / NUM_CALLS))


if __name__ == "__main__":
    asyncio.run(_main())
