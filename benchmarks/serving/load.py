"""One load generator for every service: bytes out, bytes in, at Poisson arrivals that wait for nobody, or in a loop.

Latency counts from the moment a request was due, not from when it was sent: a generator that falls behind, or a
server that makes it, does not hide what a user would have waited (coordinated omission, Tene 2013).
"""

import asyncio
import contextlib
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import grpc

from dragoman.client.load.arrivals import poisson_arrivals

__all__ = [
    "ClosedLoad",
    "End",
    "Load",
    "Service",
    "answers_of",
    "closed_loop",
    "nearest_rank",
    "open_loop",
    "unloaded_latency",
]

_TIMEOUT_S: Final = 20.0

Call = Callable[..., Any]  # bytes and a timeout -> bytes, to be awaited
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Service:
    """Something that translates one text a call.

    Attributes:
        target: address of a gRPC server without TLS.
        method: `/package.Service/Method`.
        requests: messages as they go over the wire, one a text.
        pid: of the server's process, where it is known.
    """

    name: str
    target: str
    method: str
    requests: Sequence[bytes]
    pid: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How one request ended.

    Attributes:
        due_s: when it was due, from the start of the load.
        seconds: from then to its end, whatever that was.
        code: name of its status.
    """

    due_s: float
    seconds: float
    code: str


@dataclasses.dataclass(frozen=True)
class Load:
    """What came of one open loop.

    Attributes:
        rate: requests a second that were due.
        latencies_s: one a request, infinite where it failed.
        seconds: from the start to the last answer.
        ends: one a request, in the order in which they were due.
    """

    rate: float
    latencies_s: Sequence[float]
    seconds: float
    ends: Sequence[End] = ()

    @property
    def num_failed(self) -> int:
        return sum(math.isinf(latency) for latency in self.latencies_s)

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return (len(self.latencies_s) - self.num_failed) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency in seconds that this share of the requests did not exceed (nearest rank)."""
        return nearest_rank(self.latencies_s, share)


@dataclasses.dataclass(frozen=True)
class ClosedLoad:
    """What came of one closed loop.

    Attributes:
        latencies_s: one a call.
        seconds: from the start to the last answer.
        cpu_s: CPU time of this process, the generator's, meanwhile.
    """

    latencies_s: Sequence[float]
    seconds: float
    cpu_s: float

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.latencies_s) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency in seconds that this share of the calls did not exceed (nearest rank)."""
        return nearest_rank(self.latencies_s, share)


def nearest_rank(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def open_loop(
    service: Service, rate: float, duration_s: float, seed: int, *, timeout_s: float = _TIMEOUT_S
) -> Load:
    """Send for `duration_s` seconds at `rate` a second and wait for all answers, each for `timeout_s` at most."""

    async def run(call: Call) -> Load:
        requests = itertools.cycle(service.requests)
        start_s = time.perf_counter()
        tasks = []
        for arrival_s in poisson_arrivals(rate, seed=seed):
            if arrival_s > duration_s:
                break
            if (wait_s := start_s + arrival_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            due = _end(call, next(requests), start_s, arrival_s, timeout_s)
            tasks.append(asyncio.create_task(due))
        ends = await asyncio.gather(*tasks)
        latencies = [end.seconds if end.code == "OK" else math.inf for end in ends]
        return Load(rate, latencies, max(duration_s, time.perf_counter() - start_s), ends)

    return asyncio.run(_with_call(service, run))


def closed_loop(
    service: Service, num_callers: int, duration_s: float, *, num_connections: int = 1
) -> ClosedLoad:
    """Callers who each send the next call when the last is answered, shared out over the connections.

    Raises:
        RuntimeError: a call failed.
    """

    async def run(calls: Sequence[Call]) -> ClosedLoad:
        requests = itertools.cycle(service.requests)
        latencies: list[float] = []
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        end_s = start_s + duration_s

        async def caller(call: Call) -> None:
            while (sent_s := time.perf_counter()) < end_s:
                await call(next(requests), timeout=_TIMEOUT_S)
                latencies.append(time.perf_counter() - sent_s)

        try:
            await asyncio.gather(*(caller(calls[index % num_connections]) for index in range(num_callers)))
        except grpc.RpcError as error:
            raise RuntimeError(f"{service.name}: a call failed: {error}") from error
        return ClosedLoad(latencies, time.perf_counter() - start_s, time.process_time() - start_cpu_s)

    return asyncio.run(_with_calls(service, num_connections, run))


def unloaded_latency(service: Service, num_requests: int) -> float:
    """Median seconds of one call at a time."""

    async def run(call: Call) -> float:
        requests = itertools.islice(itertools.cycle(service.requests), num_requests)
        ends = [await _end(call, one, time.perf_counter(), 0.0, _TIMEOUT_S) for one in requests]
        return statistics.median([end.seconds if end.code == "OK" else math.inf for end in ends])

    return asyncio.run(_with_call(service, run))


def answers_of(service: Service, num_requests: int) -> list[bytes]:
    """The first answers, as they came over the wire."""

    async def run(call: Call) -> list[bytes]:
        return [await call(request, timeout=_TIMEOUT_S) for request in service.requests[:num_requests]]

    return asyncio.run(_with_call(service, run))


async def _with_call(service: Service, run: Callable[[Call], Awaitable[Result]]) -> Result:
    return await _with_calls(service, 1, lambda calls: run(calls[0]))


async def _with_calls(
    service: Service, num_connections: int, run: Callable[[Sequence[Call]], Awaitable[Result]]
) -> Result:
    own = [("grpc.use_local_subchannel_pool", 1)]  # or channels to one address share a connection
    async with contextlib.AsyncExitStack() as stack:
        channels = [grpc.aio.insecure_channel(service.target, own) for _ in range(num_connections)]
        for channel in channels:
            await stack.enter_async_context(channel)
        return await run([channel.unary_unary(service.method) for channel in channels])


async def _end(call: Call, request: bytes, start_s: float, due_s: float, timeout_s: float) -> End:
    code = "OK"
    try:
        await call(request, timeout=timeout_s)
    except grpc.RpcError as error:
        code = error.code().name
    return End(due_s, time.perf_counter() - start_s - due_s, code)
