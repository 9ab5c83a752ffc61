"""How the service grows with lanes: graphs are replaced by sleeps of the time that they take, so that lanes stand for
cores that this machine does not have.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --lanes 1 8 --rounds 5

With each number of lanes: answers a second of the engine alone (a process that submits token ids, with as many
callers as it takes), and calls a second of `dragoman serve` with callers in closed loops, one text a call. The load
generator runs on the same cores. CPU time a call is that of each kind of process; of a lane's process that which its
graphs do not sleep for, their few microseconds of bookkeeping included.

What is measured is all that is not a graph: gRPC, tokenization, queue, scheduler, the way to the lanes and back.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.report import add_json_option, argument_parser, positive
from benchmarks.serving.load import Service, closed_loop
from benchmarks.serving.process_tree import usage_by_role, used_between
from benchmarks.serving.scaling_report import EngineReading, Reading, ServedReading, report
from benchmarks.serving.services import dragoman_requests
from benchmarks.serving.sleeping_bundle import captions, write_sleeping_bundle
from rich.console import Console

from dragoman.cli.server_process import running_server
from dragoman.common.errors import OperationError

_MODEL: Final = "sleeping"
_SERVER: Final = ("-m", "benchmarks.serving.sleeping_server")
_ENGINE: Final = ("-m", "benchmarks.serving.sleeping_engine")
_NUM_TEXTS: Final = 700
_CALLERS: Final = (32, 256)
_NUM_CONNECTIONS: Final = 8
_WARM_UP_S: Final = 0.5


class Effort(NamedTuple):
    """How much is run."""

    lanes: Sequence[int]
    rounds: int
    duration_s: float


WHOLE: Final = Effort((1, 2, 4, 8, 16), 3, 2.0)
QUICK: Final = Effort((1, 2), 1, 0.3)


def measure(
    models: Path, effort: Effort, overrides: Sequence[str], console: Console
) -> dict[int, list[Reading]]:
    """All turns by the number of lanes, which take turns, so that what the machine does meanwhile happens to all.

    Raises:
        OperationError: the server did not start or stop.
        RuntimeError: the engine or a call failed.
    """
    readings: dict[int, list[Reading]] = {lanes: [] for lanes in effort.lanes}
    for number in range(effort.rounds):
        for lanes in effort.lanes:
            with console.status(f"round {number + 1}, {lanes} lanes"):
                engine = engine_alone(models, lanes, effort.duration_s, overrides)
                served = served_with(models, lanes, effort.duration_s, overrides)
            readings[lanes].append(Reading(engine, served))
    return readings


def engine_alone(models: Path, lanes: int, duration_s: float, overrides: Sequence[str]) -> EngineReading:
    """Answers a second of the engine without gRPC, in a process of its own.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, *_ENGINE, str(models), "--lanes", str(lanes), "--duration", str(duration_s)]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the engine with {lanes} lanes failed: {done.stderr.strip()}")
    return EngineReading(**json.loads(done.stdout.splitlines()[-1]))


def served_with(
    models: Path, lanes: int, duration_s: float, overrides: Sequence[str]
) -> dict[int, ServedReading]:
    """Calls through gRPC, by the number of callers."""
    settings = [f"engine.lanes={lanes}", "engine.threads_per_lane=1", *overrides]
    with running_server(models, overrides=settings, program=_SERVER) as server:
        requests = dragoman_requests(_MODEL, captions(_NUM_TEXTS), 1)
        service = Service("dragoman", server.target, "/dragoman.v1.TranslationService/Translate", requests)
        readings = {
            callers: _served(service, server.process.pid, callers, duration_s) for callers in _CALLERS
        }
        server.stop()
    return readings


def _served(service: Service, pid: int, callers: int, duration_s: float) -> ServedReading:
    closed_loop(service, callers, _WARM_UP_S, num_connections=_NUM_CONNECTIONS)
    before = usage_by_role(pid)
    load = closed_loop(service, callers, duration_s, num_connections=_NUM_CONNECTIONS)
    after = usage_by_role(pid)
    num_calls = len(load.latencies_s)
    cpu_s = {role: seconds / num_calls for role, seconds in used_between(before, after).items()}
    return ServedReading(
        load.throughput,
        load.percentile(0.5),
        load.percentile(0.99),
        {**cpu_s, "generator": load.cpu_s / num_calls},
        {role: usage.pss_bytes for role, usage in after.items()},
    )


def _effort(options: argparse.Namespace) -> Effort:
    effort = QUICK if options.quick else WHOLE
    return effort._replace(lanes=options.lanes or effort.lanes, rounds=options.rounds or effort.rounds)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--lanes", nargs="+", type=positive, metavar="N", help="in place of 1 2 4 8 16")
    parser.add_argument("--rounds", type=positive, metavar="N", help="turns with each number, in place of 3")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the server"
    )
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it run?")
    add_json_option(parser)
    options = parser.parse_args()
    effort = _effort(options)
    gc.freeze()  # the collector would look through all of PyTorch, on the server's cores
    try:
        with tempfile.TemporaryDirectory(prefix="dragoman-scaling-") as folder:
            write_sleeping_bundle(Path(folder) / _MODEL / "1")
            readings = measure(Path(folder), effort, options.set, Console(stderr=True))
    except (OperationError, RuntimeError) as error:
        sys.exit(str(error))
    report(readings, effort._asdict(), options.json)


if __name__ == "__main__":
    main()
