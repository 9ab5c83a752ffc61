"""The engine alone, in a process of its own: as many callers as it takes, each with one input after another.

    python -m benchmarks.serving.sleeping_engine MODELS --lanes 4 --duration 3

Writes one line of JSON: answers a second, and CPU time an answer of the thread that asks and of the lanes.
"""

import argparse
import asyncio
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.serving.process_tree import usage_by_role
from benchmarks.serving.sleeping_server import put_to_sleep

from dragoman.server.config import ServerSettings, load_settings
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.models.running import ModelsInProcesses, ModelsInThreads, RunningModels
from dragoman.server.models.served_model import ServedModel
from dragoman.server.models.starting import start_host
from dragoman.server.operations.metrics import Metrics

_WARM_UP_S: Final = 0.5
_CALLERS_A_SLOT: Final = 1.5


async def measure(model: ServedModel, inputs: list[list[int]], duration_s: float) -> dict[str, Any]:
    """Have callers ask for so long after a warm-up, and until one has an answer."""
    endless = itertools.cycle(inputs)
    parameters = DecodingParameters(max_tokens=32)
    num_answers = 0
    is_over, answered = False, asyncio.Event()

    async def caller() -> None:
        nonlocal num_answers
        while not is_over:
            await model.engine.submit(next(endless), parameters).result()
            num_answers += 1
            answered.set()

    num_callers = int(_CALLERS_A_SLOT * model.engine.facts.num_slots)
    callers = asyncio.gather(*(caller() for _ in range(num_callers)))
    await asyncio.sleep(_WARM_UP_S)
    answered.clear()
    num_before, start_s = num_answers, time.perf_counter()
    whole_s, front_s = _cpu_s(), time.thread_time()
    await asyncio.sleep(duration_s)
    await answered.wait()
    num_measured, seconds = num_answers - num_before, time.perf_counter() - start_s
    whole_s, front_s = _cpu_s() - whole_s, time.thread_time() - front_s
    is_over = True
    await callers
    return {
        "answers_per_s": num_measured / seconds,
        "front_s": front_s / num_measured,
        "lanes_s": (whole_s - front_s) / num_measured,
    }


def _cpu_s() -> float:
    return sum(usage.cpu_s for usage in usage_by_role(os.getpid()).values())


async def run(settings: ServerSettings, duration_s: float) -> dict[str, Any]:
    """Load the model, measure, and end its lanes."""
    host, metrics = start_host(settings), Metrics(1.0)
    models: RunningModels = (
        ModelsInThreads(settings, metrics)
        if host is None
        else ModelsInProcesses(host, settings, metrics, print)
    )
    try:
        registry = await models.load(asyncio.Event())
        assert registry is not None
        [model] = registry.models
        inputs = [model.tokenizer.encode(each.text).ids for each in model.manifest.golden_examples]
        return await measure(model, inputs, duration_s)
    finally:
        await models.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("--lanes", type=int, required=True)
    parser.add_argument("--duration", type=float, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    put_to_sleep()
    layout = [f"engine.lanes={options.lanes}", "engine.threads_per_lane=1"]
    settings = load_settings(
        options={"models.directory": options.models, "logging.level": "warning"},
        overrides=[*layout, *options.set],
    )
    print(json.dumps(asyncio.run(run(settings, options.duration))))


if __name__ == "__main__":
    main()
