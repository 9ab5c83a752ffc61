"""The same overload, the same floods and the same SIGTERM for `dragoman serve` and for Triton.

    python -m tests.load.side_by_side runs/dates

RUN is a run of a translation model, such as `make demo` leaves. Dragoman serves its export as it comes. Triton serves
the same weights with CTranslate2 in its Python backend, an instance a core, with dynamic batching: once as it comes,
and once with a bounded queue.

Each server is started for the overload, for the floods, and for SIGTERM under load. A server that ends by itself is in
the table, and is started again for the next flood. Calls of the overload have many inputs, so that those who send them
take little of the cores. There is one bound: Dragoman does not end by itself, fails no call of the neighbour, and
every scene of it comes to its end.
"""

import argparse
import asyncio
import dataclasses
import functools
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import psutil
from benchmarks.report import add_json_option, argument_parser, positive
from benchmarks.serving.load import Service, nearest_rank
from benchmarks.serving.peers import add_peers_option, peers_python
from benchmarks.serving.services import PeerModel, dragoman_requests, triton_requests, triton_service
from tests.load import overload
from tests.load.attacks import ATTACKS, Aim
from tests.load.child_life import ChildLife
from tests.load.crowd import crowd
from tests.load.hostile import Neighbour, attack_in_turn
from tests.load.report import Bound, Report, Table, equals

from dragoman.cli.server_process import running_server
from dragoman.client.load.inputs import read_inputs
from dragoman.common.cpu import usable_cores
from dragoman.common.errors import OperationError
from dragoman.common.memory import proportional_bytes, readable_bytes

OURS = "Dragoman"
QUEUE_POLICY = "timeout_action: REJECT default_timeout_microseconds: 500000 max_queue_size: 64"
"""Of the bounded queue: those that wait for longer than half a second are refused, and those beyond 64 at once."""
BEFORE_S = 1.0
FLOOD_LIMIT_S = 60.0
END_LIMIT_S = 60.0
TOLD_FROM = 0.9
"""A figure that is lower than this part of ours is told as better."""


class Finding(NamedTuple):
    """A cell of the table. Of two figures the lower cost is the better one; None: it is no figure."""

    text: str
    cost: float | None = None
    is_fault: bool = False


Findings = dict[str, Finding]
_NONE = Finding("")


@dataclasses.dataclass(frozen=True)
class Contender:
    """A server that can be started again and again.

    Attributes:
        calls: of many inputs, for the overload.
    """

    start: Callable[[], AbstractContextManager[Service]]
    calls: Sequence[bytes]


def in_overload(contender: Contender, options: argparse.Namespace) -> Findings:
    """The figures of `overload`."""
    with contender.start() as service:
        life, report = _life_of(service), Report("overload")
        heavy = dataclasses.replace(service, requests=contender.calls)
        try:
            overload.measure(heavy, options, overload.Limits(), report, factor=options.factor)
        except (OSError, RuntimeError, ValueError) as error:
            found = {"overload": Finding(f"did not come to its end: {error}", is_fault=True)}
        else:
            calls = {row[0]: row for row in report.tables[0].rows}["overload"]
            found = {what: Finding(text) for what, text in report.facts.items()}
            found["calls answered, refused, late, other"] = Finding(", ".join(calls[2:6]))
            found["peak"] = Finding(report.facts["peak"], -_first_number(report.facts["peak"]))
            found |= {bound.what: _of_bound(bound) for bound in report.bounds}
            if calls[3] == "0":
                found["refusals, p99"] = Finding("none was refused")
        return found | _afterwards(life, "overload")


def _of_bound(bound: Bound) -> Finding:
    figure = _first_number(bound.measured)
    return Finding(bound.measured, -figure if bound.limit.startswith("at least") else figure)


def _first_number(text: str) -> float:
    return float(text.split(maxsplit=1)[0].replace(",", ""))


def under_floods(contender: Contender, share: float) -> Findings:
    """Each attack once, beside a neighbour; what became of the neighbour and of the server."""
    found: Findings = {}
    names = list(ATTACKS)
    while names:  # a server that has ended is started again for the next attack
        with contender.start() as service:
            life, before = _life_of(service), _memory(service)
            while names:
                name = names.pop(0)
                found[f"{name}: neighbour"] = _flood(service, name, share)
                if life.end:
                    found |= _afterwards(life, name)
                    break
            else:
                after = _memory(service)
                text = f"{readable_bytes(before)}, {readable_bytes(after)}"
                found["memory before the floods, after"] = Finding(text, after)
                found |= _afterwards(life, "floods")
    return found


def _flood(service: Service, name: str, share: float) -> Finding:
    """One attack; what the neighbour got, and the attackers' statuses."""
    aim = Aim(int(service.target.rpartition(":")[2]), service.method, service.requests[0])
    neighbour = Neighbour(aim, attack=name)
    thread = threading.Thread(target=neighbour.call_again_and_again)
    thread.start()
    parts, is_fault = [], False
    try:
        arguments = (aim, 1, share, [name])
        title = f"{service.name}: {name}"
        [made] = crowd(attack_in_turn, [arguments], title=title, limit_s=FLOOD_LIMIT_S)
    except (OSError, BrokenProcessPool) as error:
        parts, is_fault = [f"the attack did not come to its end: {error}"], True
    else:
        parts = [f"{count:,} {code}" for code, count in made[name][1].most_common()]
    finally:
        neighbour.is_over = True
        thread.join()
    for what, count in neighbour.failures.items():
        parts.append(f"{count} of the neighbour's calls {what.rpartition(': ')[2]}")
    if not (seconds := neighbour.seconds[name]):
        return Finding("; ".join(["no answer", *parts]), float("inf"), is_fault=True)
    p99_ms = 1000 * nearest_rank(seconds, 0.99)
    return Finding("; ".join([f"p99 {p99_ms:.0f} ms", *parts]), p99_ms, is_fault or bool(neighbour.failures))


def _memory(service: Service) -> int:
    try:
        server = psutil.Process(service.pid)
        return sum(proportional_bytes(each.pid) for each in (server, *server.children(recursive=True)))
    except (psutil.Error, OSError):
        return 0  # it has ended


def _life_of(service: Service) -> ChildLife:
    assert service.pid is not None
    return ChildLife(service.pid)


def _afterwards(life: ChildLife, scene: str) -> Findings:
    """How the server has ended by itself, or how it ends at a SIGTERM when nobody calls it."""
    if life.end:
        return {f"{scene}: the server": Finding(f"ended by itself: {life.end}", is_fault=True)}
    end = life.terminate(END_LIMIT_S)
    return {f"SIGTERM after the {scene}": Finding(end, is_fault=not end.startswith("exit code 0"))}


def under_sigterm(contender: Contender, options: argparse.Namespace) -> Findings:
    """SIGTERM while callers that repeat nothing wait: what became of their calls, and of the server."""
    with contender.start() as service:
        life = _life_of(service)
        outcomes, end = asyncio.run(_stop(service, life, options.callers))
        calls = ", ".join(f"{count:,} {what}" for what, count in outcomes.most_common())
        return {
            "SIGTERM under load: calls from then on": Finding(
                calls, is_fault=not set(outcomes) <= {"answered", "UNAVAILABLE"}
            ),
            "SIGTERM under load": Finding(end, is_fault=not end.startswith("exit code 0")),
        }


async def _stop(service: Service, life: ChildLife, num_callers: int) -> tuple[Counter[str], str]:
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
                    await asyncio.sleep(0.02)
                else:
                    outcomes["answered"] += 1

    tasks = [asyncio.create_task(call_again_and_again(number)) for number in range(num_callers)]
    await asyncio.sleep(BEFORE_S)
    outcomes.clear()
    end = await asyncio.to_thread(life.terminate, END_LIMIT_S)
    is_over = True
    await asyncio.gather(*tasks)
    return outcomes, end


@contextmanager
def _dragoman(models: Path, texts: Sequence[str]) -> Iterator[Service]:
    with running_server(models) as server:
        requests = dragoman_requests("side", texts, 1)
        yield Service(OURS, server.target, overload.METHOD, requests, server.process.pid)


@contextmanager
def _triton(peer: PeerModel, texts: Sequence[str], policy: str) -> Iterator[Service]:
    with (
        tempfile.TemporaryDirectory(prefix="dragoman-triton-") as name,
        triton_service(peer, Path(name), texts, policy) as service,
    ):
        yield service


def contenders(options: argparse.Namespace, folder: Path) -> dict[str, Contender]:
    """All that are compared, by their names."""
    from benchmarks.serving.ctranslate2_system import convert

    from dragoman.export.exporter import export_run
    from dragoman.model.run import TOKENIZER_FILE, load_run

    bundle = folder / "models" / "side" / "1"
    export_run(options.run, bundle, precision="fp32", num_held_out=options.held_out)
    python = peers_python(options.peers_venv)
    convert(load_run(options.run).model, python, folder / "ctranslate2")
    peer = PeerModel(
        python=python,
        folder=folder / "ctranslate2",
        tokenizer=(options.run / TOKENIZER_FILE).resolve(),
        precision="fp32",
        max_tokens=options.max_tokens,
        num_cores=usable_cores(),
    )
    texts = read_inputs(bundle)
    again = [*texts, *texts]
    calls = [(again * options.inputs)[begin : begin + options.inputs] for begin in range(len(texts))]
    ours = [message for call in calls for message in dragoman_requests("side", call, options.inputs)]
    theirs = triton_requests(python, calls)
    return {
        OURS: Contender(functools.partial(_dragoman, folder / "models", texts), ours),
        "Triton": Contender(functools.partial(_triton, peer, texts, ""), theirs),
        "Triton, bounded queue": Contender(functools.partial(_triton, peer, texts, QUEUE_POLICY), theirs),
    }


def measure(options: argparse.Namespace, report: Report) -> None:
    """What each did, side by side, and in what others were better than ours."""
    found: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(prefix="dragoman-side-") as name:
        for who, contender in contenders(options, Path(name)).items():
            found[who] = {
                **in_overload(contender, options),
                **under_floods(contender, options.share),
                **under_sigterm(contender, options),
            }
    whats = list(dict.fromkeys(what for each in found.values() for what in each))
    rows = [[what, *(each[what].text if what in each else "" for each in found.values())] for what in whats]
    report.tables.append(Table("What each did", ["", *found], rows))
    for who, findings in found.items():
        if who != OURS:
            report.facts[f"{who} is better in"] = "; ".join(_better(findings, found[OURS])) or "nothing"
    faults = [f"{what}: {each.text}" for what, each in found[OURS].items() if each.is_fault]
    report.bounds.append(equals("faults of Dragoman", "; ".join(faults) or 0, 0))


def _better(theirs: Mapping[str, Finding], ours: Mapping[str, Finding]) -> Iterator[str]:
    for what in theirs:
        cost, own = theirs[what].cost, ours.get(what, _NONE).cost
        if cost is not None and own is not None and cost < own - (1 - TOLD_FROM) * abs(own):
            yield f"{what} ({theirs[what].text.partition(';')[0]} against {ours[what].text.partition(';')[0]})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run of a translation model")
    parser.add_argument("--duration", type=positive, default=10, metavar="SECONDS", help="of each load")
    parser.add_argument(
        "--after", type=positive, default=5, metavar="SECONDS", help="in which overload is over"
    )
    parser.add_argument("--factor", type=float, default=5.0, help="overload, of the peak")
    parser.add_argument("--inputs", type=positive, default=32, help="of a call of the overload")
    parser.add_argument("--share", type=float, default=1.0, help="of the attacks")
    parser.add_argument("--callers", type=positive, default=32)
    parser.add_argument("--processes", type=positive, default=2, help="that send the overload")
    parser.add_argument("--max-tokens", type=positive, default=14, help="of an answer of the model")
    parser.add_argument("--held-out", type=positive, default=64, help="inputs that the export is verified on")
    parser.add_argument("--seed", type=int, default=1)
    add_peers_option(parser)
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report = Report("side-by-side")
    try:
        measure(options, report)
    except (OperationError, ValueError) as error:
        sys.exit(str(error))
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
