"""CPU time that a refused call takes in a front, by the stage at which it is refused, without gRPC's own part.

    python -m benchmarks.refusals tests/fixtures/bundles/spell/1

A call goes through the same chain as on a server, with a context that the program plays. BUNDLE is a translation model.
The last row is an accepted call up to its place in the queue, where nothing is computed.
"""

import argparse
import asyncio
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import structlog
from benchmarks.played_context import PlayedContext

from dragoman.server.config import EngineSettings
from dragoman.server.engine.client import EngineClient
from dragoman.server.fronts.grpc.authentication import Authenticator
from dragoman.server.fronts.grpc.chains import Interceptors
from dragoman.server.fronts.grpc.dragoman_v1.protocol import PROTOCOL
from dragoman.server.fronts.grpc.dragoman_v1.translation import TranslationServicer
from dragoman.server.fronts.grpc.draining import CallGate
from dragoman.server.lifecycle import Lifecycle, Phase
from dragoman.server.models.registry import Registry
from dragoman.server.models.threaded import ThreadedModels
from dragoman.server.operations.metrics import Metrics
from dragoman.server.requests.client_limits import ClientLimits
from dragoman.server.requests.recorder import CallRecorder
from dragoman.server.requests.runtime import Runtime
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse

PATH = "/dragoman.v1.TranslationService/Translate"
NUM_CALLS = 2_000
NUM_ROUNDS = 7


class Front:
    """A front with one model, whose engine has no lanes: what is accepted waits for ever."""

    def __init__(self, bundle: Path, max_waiting: int, *, max_calls: int = 10**6) -> None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        models = ThreadedModels(EngineSettings(lanes=1))
        models.load(bundle)
        self.metrics = Metrics(1.0)
        [model] = models.connect(self.metrics)
        engine = EngineClient(model.engine.facts, EngineSettings(max_waiting=max_waiting))
        self.model = dataclasses.replace(model, name="spell", engine=engine)
        models.close(5)
        lifecycle = Lifecycle()
        lifecycle.phase = Phase.SERVING
        self.limits = ClientLimits()
        self.recorder = CallRecorder(self.metrics, {"spell": 10}, max_calls=max_calls, limits=self.limits)
        runtime = Runtime(Registry([self.model]), lifecycle, max_inputs=128)
        interceptors = Interceptors(
            self.recorder,
            CallGate(),
            Authenticator(),
            max_inputs=128,
            max_message_bytes=10**6,
            max_streams=100,
        )
        inner = grpc.unary_unary_rpc_method_handler(
            TranslationServicer(runtime).Translate,
            TranslateRequest.FromString,
            TranslateResponse.SerializeToString,
        )
        self.handler: Any = interceptors.around(PATH, inner, PROTOCOL)

    async def call(
        self, request: TranslateRequest, remaining_s: float | None = None
    ) -> grpc.StatusCode | None:
        """Make a call; returns how it was refused."""
        context = PlayedContext(request.SerializeToString(), remaining_s=remaining_s)
        await self.handler.stream_unary(None, context)
        context.end()
        return None if context.status is None else context.status.code


ONE = TranslateRequest(model="spell", inputs=["12"])


async def refused(front: Front, request: TranslateRequest = ONE, remaining_s: float | None = None) -> float:
    """Seconds of CPU that a refused call takes: the best of several rounds."""
    assert await front.call(request, remaining_s) is not None, "it was not refused"
    best = math.inf
    for _ in range(NUM_ROUNDS):
        begin_s = time.process_time()
        for _ in range(NUM_CALLS):
            await front.call(request, remaining_s)
        best = min(best, time.process_time() - begin_s)
    return best / NUM_CALLS


async def accepted(front: Front) -> float:
    """Seconds of CPU until a call waits in the queue."""
    best = math.inf
    for _ in range(NUM_ROUNDS):
        begin_s = time.process_time()
        tasks = [asyncio.create_task(front.call(ONE)) for _ in range(200)]
        await asyncio.sleep(0)
        best = min(best, time.process_time() - begin_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        front.recorder.in_flight.count = 0
    return best / 200


def limited(front: Front, **limits: Any) -> Front:
    front.limits.change(**{"max_calls": 0, "tokens_a_second": 0.0, "burst_tokens": 0.0, **limits})
    return front


async def measure(bundle: Path) -> dict[str, float]:
    """Seconds of CPU by stage and reason."""
    seconds: dict[str, float] = {}
    seconds["arrival: late"] = await refused(Front(bundle, 128), remaining_s=0.0)
    seconds["arrival: too_many_calls"] = await refused(Front(bundle, 128, max_calls=0))
    front = limited(Front(bundle, 128), max_calls=1)
    front.limits.begin("192.0.2.7", time.monotonic())
    seconds["arrival: client_calls"] = await refused(front)
    front = limited(Front(bundle, 128), tokens_a_second=1e-3, burst_tokens=1.0)
    front.limits.begin("192.0.2.7", time.monotonic())
    front.limits.pay("192.0.2.7", 100, time.monotonic())
    seconds["arrival: client_tokens"] = await refused(front)
    seconds["admission: invalid"] = await refused(Front(bundle, 128), TranslateRequest(model="spell"))
    front = Front(bundle, 128)
    load, now_s = front.recorder.loads["spell"], time.monotonic()
    for _ in range(100):
        load.begin(now_s - 1)
    load.delay(1.0, now_s)
    seconds["admission: no_time"] = await refused(front, remaining_s=0.5)
    front = Front(bundle, 1)
    full = [asyncio.create_task(front.call(ONE)) for _ in range(2)]
    await asyncio.sleep(0.1)
    seconds["admission: queue_full"] = await refused(front)
    for task in full:
        task.cancel()
    await asyncio.gather(*full, return_exceptions=True)
    seconds["accepted, up to the queue"] = await accepted(Front(bundle, 100_000))
    return seconds


def main(arguments: list[str] | None = None, show: Callable[[str], object] = print) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    for what, seconds in asyncio.run(measure(parser.parse_args(arguments).bundle)).items():
        show(f"{what:28} {1e6 * seconds:6.1f} us of CPU, {1 / seconds:8,.0f} a second")


if __name__ == "__main__":
    main()
