"""The engine alone, in a process of its own: as many callers as it takes, each with one input after another.

    python -m benchmarks.serving.sleeping_engine BUNDLE --lanes 4 --duration 3

Writes one line of JSON: answers a second, and the CPU time that the process took.
"""

import argparse
import asyncio
import itertools
import json
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.serving.sleeping_graphs import install

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import load_settings
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.models.loader import load_backend

_WARM_UP_S: Final = 0.5
_CALLERS_A_SLOT: Final = 1.5


async def measure(
    engine: EngineClient, inputs: list[list[int]], num_callers: int, duration_s: float
) -> dict[str, Any]:
    """Have so many callers ask for so long, after a warm-up."""
    endless = itertools.cycle(inputs)
    parameters = DecodingParameters(max_tokens=32)
    end_s = time.perf_counter() + _WARM_UP_S + duration_s
    num_answers = 0

    async def caller() -> None:
        nonlocal num_answers
        while time.perf_counter() < end_s:
            await engine.submit(next(endless), parameters).result()
            num_answers += 1

    callers = asyncio.gather(*(caller() for _ in range(num_callers)))
    await asyncio.sleep(_WARM_UP_S)
    num_before, start_s = num_answers, time.perf_counter()
    cpu_s, front_s = time.process_time(), time.thread_time()
    await asyncio.sleep(end_s - time.perf_counter())
    num_measured, seconds = num_answers - num_before, time.perf_counter() - start_s
    cpu_s, front_s = time.process_time() - cpu_s, time.thread_time() - front_s
    await callers
    return {
        "answers_per_s": num_measured / seconds,
        "front_s": front_s / num_measured,
        "lanes_s": (cpu_s - front_s) / num_measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--lanes", type=int, required=True)
    parser.add_argument("--duration", type=float, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    install()
    layout = [f"engine.lanes={options.lanes}", "engine.threads_per_lane=1"]
    settings = load_settings(overrides=[*layout, *options.set]).engine
    bundle = Bundle.read(options.bundle)
    num_callers = int(_CALLERS_A_SLOT * settings.slots_per_lane * options.lanes)

    lanes = LaneThreads(load_backend(bundle, settings), settings)
    try:
        measured = asyncio.run(
            measure(lanes.connect(), bundle.golden_inputs(), num_callers, options.duration)
        )
    finally:
        lanes.close()
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
