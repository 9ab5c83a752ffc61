"""Ten times more calls than can be answered: what is still answered, how fast the rest is refused, when it is over.

    python -m tests.load.overload
    python -m tests.load.overload --bundle models/dates/1 --inputs 16

A closed loop finds the peak: answers a second. An open loop of 80 % of it gives the latency of a busy server. Then
calls come at ten times the peak, at Poisson arrivals from several processes that repeat nothing. Each has a deadline of
twice that latency. Other callers go on at 80 % of the peak, meanwhile and afterwards, and show when it is over. A call
that is accepted and then misses its deadline counts as infinitely slow.

Ten times the peak of a small model is more than callers can send from the same machine. So sleeps replace the graphs,
as if the model was larger: `--slowness` times those of the recipe multi30k. With `--bundle` a real model runs. Its
lanes have half of the cores for themselves, so that callers do not take from the lanes what they measure.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import add_json_option, argument_parser, positive
from benchmarks.serving.load import End, Load, Service, closed_loop, nearest_rank, open_loop
from tests.load.crowd import crowd
from tests.load.report import Report, Table, at_least, at_most
from tests.load.tree import Tree

from dragoman.cli.server_process import running_server
from dragoman.client.load.inputs import read_inputs
from dragoman.v1 import decoding_pb2, translation_pb2

METHOD = "/dragoman.v1.TranslationService/Translate"
OVERLOAD = 10
BUSY = 0.8
REFUSALS = {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
WINDOW_S = 1.0
STEP_S = 0.1


@dataclass(frozen=True)
class Limits:
    """What must hold."""

    goodput: float = 0.95
    refusal_s: float = 0.05
    slowdown: float = 2.0
    recovery_s: float = 2.0


def request(model: str, texts: Sequence[str], num_inputs: int, min_tokens: int) -> bytes:
    """A call of some weight, so that ten times as many are not more than the callers can send."""
    inputs = [texts[number % len(texts)] for number in range(num_inputs)]
    options = decoding_pb2.DecodingOptions(min_tokens=min_tokens)
    return translation_pb2.TranslateRequest(model=model, inputs=inputs, options=options).SerializeToString()


def flood(
    service: Service,
    rate: float,
    options: argparse.Namespace,
    *,
    duration_s: float,
    timeout_s: float,
    title: str,
    busy_rate: float = 0.0,
    busy_extra_s: float = 0.0,
) -> tuple[list[End], list[End]]:
    """Ends of the calls at `rate`, from several processes, and of those at `busy_rate`, which go on for longer."""
    num_processes = options.processes if rate > 200 else 1
    arguments: list[tuple[Any, ...]] = [
        (service, rate / num_processes, duration_s, options.seed + number, timeout_s)
        for number in range(num_processes)
    ]
    if busy_rate:
        arguments.append((service, busy_rate, duration_s + busy_extra_s, options.seed + 100, timeout_s))
    loads = crowd(_open_loop, arguments, title=title)
    busy = loads.pop().ends if busy_rate else []
    return [end for load in loads for end in load.ends], list(busy)


def _open_loop(service: Service, rate: float, duration_s: float, seed: int, timeout_s: float) -> Load:
    return open_loop(service, rate, duration_s, seed, timeout_s=timeout_s)


def seconds_of(ends: Sequence[End], *codes: str) -> list[float]:
    """How long calls took that ended with one of the codes."""
    return [end.seconds for end in ends if end.code in codes]


def p99_of_accepted(ends: Sequence[End]) -> float:
    """Of calls that were not refused; infinite where one call in a hundred was given up."""
    taken = [end for end in ends if end.code not in REFUSALS]
    return nearest_rank([end.seconds if end.code == "OK" else float("inf") for end in taken], 0.99)


def recovery(ends: Sequence[End], after_s: float, limit_s: float) -> float:
    """Seconds from `after_s` until a second begins in which all calls are answered and p99 is within `limit_s`."""
    begin_s = after_s
    last_s = max(end.due_s for end in ends) - WINDOW_S
    while begin_s < last_s:
        window = [end for end in ends if begin_s <= end.due_s < begin_s + WINDOW_S]
        if (
            all(end.code == "OK" for end in window)
            and nearest_rank([end.seconds for end in window] or [0.0], 0.99) <= limit_s
        ):
            return begin_s - after_s
        begin_s += STEP_S
    return float("inf")


def measure(
    service: Service,
    options: argparse.Namespace,
    limits: Limits,
    report: Report,
    *,
    factor: float = OVERLOAD,
) -> None:
    """Peak, busy, overload of `factor` times the peak, recovery; `service` runs."""
    [peak] = crowd(closed_loop, [(service, options.callers, options.duration)], title="the peak")
    rate = BUSY * peak.throughput
    busy, _ = flood(service, rate, options, duration_s=options.duration, timeout_s=20.0, title="80 %")
    busy_p99_s = p99_of_accepted(busy)
    deadline_s = limits.slowdown * busy_p99_s
    ends, beside = flood(
        service,
        factor * peak.throughput,
        options,
        duration_s=options.duration,
        timeout_s=deadline_s,
        title=f"{factor:g} times the peak",
        busy_rate=rate,
        busy_extra_s=options.after,
    )
    meanwhile = [end for end in beside if end.due_s <= options.duration]
    together = [*ends, *meanwhile]
    answers = seconds_of(together, "OK")
    goodput = len(answers) / options.duration
    refusals = [seconds for code in REFUSALS for seconds in seconds_of(together, code)]
    report.facts["peak"] = f"{peak.throughput:,.1f} calls a second, {options.callers} callers"
    report.facts["p99 at 80 %"] = f"{1000 * busy_p99_s:,.0f} ms; the deadline in overload is twice that"
    report.facts["offered"] = f"{len(together) / options.duration:,.0f} calls a second"
    rows = [[name, *_row(each)] for name, each in (("80 %", busy), ("overload", together))]
    columns = ["load", "calls", "answered", "refused", "past their deadline", "other", "p50", "p99"]
    report.tables.append(Table("Calls by how they ended; milliseconds of those answered", columns, rows))
    recovered_s = recovery(beside, options.duration, deadline_s)
    report.bounds += [
        at_least(
            "goodput in overload, of the peak", 100 * goodput / peak.throughput, 100 * limits.goodput, " %"
        ),
        at_most(
            "refusals, p99", 1000 * nearest_rank(refusals or [0.0], 0.99), 1000 * limits.refusal_s, " ms"
        ),
        at_most(
            "p99 of accepted calls, of that at 80 %", p99_of_accepted(together) / busy_p99_s, limits.slowdown
        ),
        at_most("seconds until all is as at 80 % again", recovered_s, limits.recovery_s),
    ]


def _row(ends: Sequence[End]) -> list[str]:
    codes = Counter(end.code for end in ends)
    answers = seconds_of(ends, "OK") or [0.0]
    num_refused = sum(codes[code] for code in REFUSALS)
    other = {code for code in codes if code not in REFUSALS | {"OK", "DEADLINE_EXCEEDED"}}
    return [
        f"{len(ends):,}",
        f"{codes['OK']:,}",
        f"{num_refused:,}",
        f"{codes['DEADLINE_EXCEEDED']:,}",
        ", ".join(f"{codes[code]} {code}" for code in sorted(other)) or "0",
        *(f"{1000 * nearest_rank(answers, share):.0f}" for share in (0.5, 0.99)),
    ]


def divide_cores() -> tuple[list[int], list[int]]:
    """Cores for lanes and cores for all else; this process is on the latter from now on."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return cores, cores
    lanes, rest = cores[: len(cores) // 2], cores[len(cores) // 2 :]
    os.sched_setaffinity(0, rest)
    return lanes, rest


@contextlib.contextmanager
def _sleeping(models: Path, options: argparse.Namespace) -> Iterator[Service]:
    # It has torch, which takes seconds: callers in processes of their own do without.
    from benchmarks.serving.sleeping_bundle import captions, write_sleeping_bundle

    write_sleeping_bundle(models / "sleeping" / "1", slowness=options.slowness)
    settings = [f"engine.lanes={options.lanes}", "engine.threads_per_lane=1", *options.set]
    program = ("-m", "benchmarks.serving.sleeping_server")
    with running_server(models, overrides=settings, program=program) as server:
        texts = captions(700)
        yield Service("dragoman", server.target, METHOD, _requests("sleeping", texts, options))
        server.stop()


@contextlib.contextmanager
def _real(models: Path, options: argparse.Namespace) -> Iterator[Service]:
    model = options.bundle.parent.name
    (models / model).mkdir()
    (models / model / options.bundle.name).symlink_to(options.bundle.resolve())
    lane_cores, _ = divide_cores()
    settings = [f"engine.lanes={len(lane_cores)}", "engine.lanes_run_in=processes", *options.set]
    with running_server(models, overrides=settings) as server:
        for lane in Tree(server.process.pid).by_kind()["lane"]:
            lane.cpu_affinity(lane_cores)
        texts = read_inputs(options.bundle)
        yield Service("dragoman", server.target, METHOD, _requests(model, texts, options))
        server.stop()


def _requests(model: str, texts: Sequence[str], options: argparse.Namespace) -> list[bytes]:
    return [
        request(model, [*texts[begin:], *texts[:begin]], options.inputs, options.min_tokens)
        for begin in range(len(texts))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--bundle", type=Path, metavar="MODELS/NAME/VERSION", help="of translation, to run for real"
    )
    parser.add_argument("--inputs", type=positive, default=1, help="of a call")
    parser.add_argument("--min-tokens", type=int, default=0, help="of each answer")
    parser.add_argument("--slowness", type=float, default=40.0, help="of graphs that sleep")
    parser.add_argument("--lanes", type=positive, default=2, help="of graphs that sleep")
    parser.add_argument("--duration", type=positive, default=20, metavar="SECONDS", help="of each load")
    parser.add_argument(
        "--after", type=positive, default=6, metavar="SECONDS", help="in which it must be over"
    )
    parser.add_argument("--callers", type=positive, default=64, help="of the closed loop that finds the peak")
    parser.add_argument("--processes", type=positive, default=3, help="that send the overload")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the server")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report, own_cores = Report("overload"), os.sched_getaffinity(0)
    try:
        start = _real if options.bundle else _sleeping
        with (
            tempfile.TemporaryDirectory(prefix="dragoman-overload-") as name,
            start(Path(name), options) as service,
        ):
            measure(service, options, Limits(), report)
    finally:
        os.sched_setaffinity(0, own_cores)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
