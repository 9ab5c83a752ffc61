"""What every peer's process does: one JSON object a line on standard input, one answer a line on standard output.

Runs in the peers' environment. A request is the name of a method of the worker, under `request`, and its arguments;
an answer with `error` says what failed. `ready` asks for nothing: its answer says that all imports are done.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def answer_requests(worker: Any) -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        arguments = json.loads(line)
        request = arguments.pop("request")
        try:
            answer = {} if request == "ready" else getattr(worker, request)(**arguments)
        except Exception as error:  # noqa: BLE001  whatever it is, the benchmark says it and ends
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def repeat(run: Callable[[], Any], turn_s: float) -> tuple[float, Any]:
    """Call `run` for at least `turn_s` seconds: the mean seconds of a call, and what the last one returned."""
    num_runs, start_s = 0, time.perf_counter()
    while True:
        result = run()
        num_runs += 1
        elapsed_s = time.perf_counter() - start_s
        if elapsed_s >= turn_s:
            return elapsed_s / num_runs, result
