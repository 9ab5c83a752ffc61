"""The same floods, the same overload and the same SIGTERM for `dragoman serve` and for Triton.

    python -m tests.load.side_by_side runs/dates

RUN is a run of a translation model, such as `make demo` leaves. Dragoman serves its export. Triton serves the same
weights with CTranslate2 in its Python backend, an instance a core, with dynamic batching. Both run one after the other,
as they come. There are no bounds: the table says what each did.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from benchmarks.report import add_json_option, argument_parser, positive
from benchmarks.serving.load import Service, nearest_rank
from benchmarks.serving.peers import add_peers_option, peers_python
from benchmarks.serving.services import PeerModel, dragoman_requests, triton_service
from tests.load import overload
from tests.load.attacks import ATTACKS, Aim
from tests.load.crowd import crowd
from tests.load.hostile import Neighbour, attack_in_turn
from tests.load.report import Report, Table

from dragoman.cli.server_process import running_server
from dragoman.common.cpu import usable_cores
from dragoman.common.errors import OperationError
from dragoman.common.memory import proportional_bytes, readable_bytes

NUM_CALLERS = 32
BEFORE_S = 1.0


def under_floods(service: Service, process: psutil.Process, share: float) -> dict[str, str]:
    """Each attack once, with a neighbour; what became of the neighbour and of the server."""
    aim = Aim(int(service.target.rpartition(":")[2]), service.method, service.requests[0])
    neighbour, results = Neighbour(aim), {}
    thread = threading.Thread(target=neighbour.call_again_and_again)
    thread.start()
    before = _memory(process)
    try:
        for name in ATTACKS:
            neighbour.attack = name
            [made] = crowd(attack_in_turn, [(aim, 1, share, [name])], title=f"{service.name}: {name}")
            seconds = neighbour.seconds[name]
            p99 = f"p99 {1000 * nearest_rank(seconds, 0.99):.0f} ms" if seconds else "no answer"
            statuses = ", ".join(f"{count:,} {code}" for code, count in made[name][1].most_common())
            results[f"{name}: neighbour"] = f"{p99}{'; ' + statuses if statuses else ''}"
    finally:
        neighbour.is_over = True
        thread.join()
    results["neighbour's calls that failed"] = str(dict(neighbour.failures) or 0)
    results["memory before the attacks, after"] = (
        f"{readable_bytes(before)}, {readable_bytes(_memory(process))}"
        if process.is_running()
        else "it has ended"
    )
    return results


def _memory(process: psutil.Process) -> int:
    return sum(proportional_bytes(each.pid) for each in (process, *process.children(recursive=True)))


def in_overload(service: Service, options: argparse.Namespace) -> dict[str, str]:
    """The figures of `overload`."""
    report = Report("overload")
    overload.measure(service, options, overload.Limits(), report, factor=options.factor)
    calls = {row[0]: row for row in report.tables[0].rows}["overload"]
    return {
        **report.facts,
        "calls answered, refused, late, other": ", ".join(calls[2:6]),
        **{bound.what: bound.measured for bound in report.bounds},
    }


def under_sigterm(service: Service, process: psutil.Process) -> dict[str, str]:
    """SIGTERM while callers that repeat nothing wait: what became of calls, how long it took, with which code."""
    outcomes, seconds = asyncio.run(_stop(service, process))
    return {
        "calls from SIGTERM on": ", ".join(f"{count:,} {what}" for what, count in outcomes.most_common()),
        "seconds until the process has ended": f"{seconds:.2f}",
    }


async def _stop(service: Service, process: psutil.Process) -> tuple[Counter[str], float]:
    outcomes: Counter[str] = Counter()
    is_over = False

    async def call_again_and_again(number: int) -> None:
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(service.target, own) as channel:
            method: Any = channel.unary_unary(service.method)
            while not is_over:
                number += 1
                try:
                    await method(service.requests[number % len(service.requests)], timeout=20)
                except grpc.aio.AioRpcError as error:
                    outcomes[error.code().name] += 1
                    if outcomes[error.code().name] > 1 and not process.is_running():
                        return
                    await asyncio.sleep(0.02)
                else:
                    outcomes["answered"] += 1

    tasks = [asyncio.create_task(call_again_and_again(number)) for number in range(NUM_CALLERS)]
    await asyncio.sleep(BEFORE_S)
    outcomes.clear()
    began_s = time.monotonic()
    process.terminate()
    await asyncio.to_thread(psutil.wait_procs, [process], 60)
    seconds = time.monotonic() - began_s
    is_over = True
    await asyncio.gather(*tasks)
    return outcomes, seconds


@contextlib.contextmanager
def _dragoman(options: argparse.Namespace, folder: Path, texts: Sequence[str]) -> Iterator[Service]:
    from dragoman.export.exporter import export_run

    bundle = folder / "models" / "side" / "1"
    export_run(options.run, bundle, precision="fp32", num_held_out=options.held_out)
    with running_server(folder / "models") as server:
        requests = dragoman_requests("side", texts, 1)
        yield Service("Dragoman", server.target, overload.METHOD, requests)


@contextlib.contextmanager
def _triton(options: argparse.Namespace, folder: Path, texts: Sequence[str]) -> Iterator[Service]:
    from benchmarks.serving.ctranslate2_system import convert

    from dragoman.model.run import TOKENIZER_FILE, load_run

    python, run = peers_python(options.peers_venv), load_run(options.run)
    convert(run.model, python, folder / "ctranslate2")
    peer = PeerModel(
        python=python,
        folder=folder / "ctranslate2",
        tokenizer=(options.run / TOKENIZER_FILE).resolve(),
        precision="fp32",
        max_tokens=options.max_tokens,
        num_cores=usable_cores(),
    )
    with triton_service(peer, folder / "triton", texts) as service:
        yield service


def _process_of(name: str) -> psutil.Process:
    """The server among this process's children."""
    children = psutil.Process().children()
    return next(each for each in children if any(name in word for word in each.cmdline()))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, str]]:
    """What each did, by its name."""
    samples = json.loads((options.run / "samples.jsonl").read_text().splitlines()[0])["samples"]
    texts = [sample["source"] for sample in samples]
    results: dict[str, dict[str, str]] = {}
    for name, start, program in (("Dragoman", _dragoman, "dragoman"), ("Triton", _triton, "tritonserver")):
        with start(options, folder, texts) as service:
            process = _process_of(program)
            results[name] = {
                **in_overload(service, options),
                **under_floods(service, process, options.share),
                **under_sigterm(service, process),
            }
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run of a translation model")
    parser.add_argument("--duration", type=positive, default=10, metavar="SECONDS", help="of each load")
    parser.add_argument(
        "--after", type=positive, default=5, metavar="SECONDS", help="in which overload is over"
    )
    parser.add_argument(
        "--factor", type=float, default=3.0, help="overload, of the peak; callers share the cores"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the attacks")
    parser.add_argument("--callers", type=positive, default=NUM_CALLERS)
    parser.add_argument("--processes", type=positive, default=2, help="that send the overload")
    parser.add_argument("--max-tokens", type=positive, default=14, help="of an answer of the model")
    parser.add_argument("--held-out", type=positive, default=64, help="inputs that the export is verified on")
    parser.add_argument("--seed", type=int, default=1)
    add_peers_option(parser)
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report = Report("side-by-side")
    try:
        with tempfile.TemporaryDirectory(prefix="dragoman-side-") as name:
            results = measure(options, Path(name))
    except (OperationError, ValueError, RuntimeError) as error:
        sys.exit(str(error))
    names = list(results)
    whats = list(dict.fromkeys(what for each in results.values() for what in each))
    rows = [[what, *(results[name].get(what, "") for name in names)] for what in whats]
    report.tables.append(Table("What each did", ["", *names], rows))
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
