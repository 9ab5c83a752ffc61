"""Attacks on a server, while a neighbour goes on calling it.

    python -m tests.load.hostile --rounds 10

All attacks take turns, round after round. A neighbour on a connection of its own asks for a translation again and again
and must get it. Its latency is that of each attack. Memory is the PSS of all of the server, after each round.
"""

import argparse
import dataclasses
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from benchmarks.report import add_json_option, argument_parser, positive
from benchmarks.serving.load import nearest_rank
from tests.integration.serving import BUNDLES
from tests.load.attacks import ATTACKS, DRAGOMAN, PRECISE, Aim
from tests.load.crowd import crowd
from tests.load.metrics_page import calls_by_code, total
from tests.load.report import Report, Table, at_most, equals
from tests.load.tree import Tree

from dragoman.cli.server_process import ServerProcess, running_server
from dragoman.common.memory import readable_bytes

NEIGHBOUR_S = 0.25
PAUSE_S = 0.01
SETTLE_S = 1.0
MAX_GROWTH = 0.05


@dataclass
class Neighbour:
    """A caller that does nothing wrong, and that was answered before the attacks began.

    Attributes:
        attack: what happens meanwhile.
        seconds: of each call, by attack.
    """

    aim: Aim
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: Counter[str] = field(default_factory=Counter)
    attack: str = ""
    is_over: bool = False

    def call_again_and_again(self) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{self.aim.port}") as channel:
            method: Any = channel.unary_unary(self.aim.path)
            answer = method(self.aim.message, timeout=20)
            while not self.is_over:
                attack, began_s = self.attack, time.perf_counter()
                try:
                    if method(self.aim.message, timeout=20) != answer:
                        self.failures[f"{attack}: wrong"] += 1
                except grpc.RpcError as error:
                    self.failures[f"{attack}: {error.code().name}"] += 1
                else:
                    self.seconds[attack].append(time.perf_counter() - began_s)
                time.sleep(PAUSE_S)


def attack_in_turn(
    aim: Aim, seed: int, share: float, names: Sequence[str]
) -> dict[str, tuple[int, Counter[str]]]:
    """One round, in a process of its own."""
    return {
        name: ATTACKS[name][0](aim, random.Random(f"{seed} {name}"), max(1, round(ATTACKS[name][1] * share)))
        for name in names
    }


def _made(
    arguments: tuple[Aim, int, float, list[str]], title: str, options: argparse.Namespace
) -> dict[str, tuple[int, Counter[str]]]:
    """One attack, from a process of its own, as attackers do not share a processor's lock with the neighbour."""
    if options.in_process:
        return attack_in_turn(*arguments)
    [made] = crowd(attack_in_turn, [arguments], title=title)
    return made


def run(server: ServerProcess, options: argparse.Namespace, report: Report) -> None:
    aim = dataclasses.replace(DRAGOMAN, port=server.port)
    neighbour = Neighbour(aim)
    thread = threading.Thread(target=neighbour.call_again_and_again)
    thread.start()
    tree = Tree(server.process.pid)
    num_cases: Counter[str] = Counter()
    statuses: dict[str, Counter[str]] = defaultdict(Counter)
    sizes, pids = [], tree.pids()
    try:
        for number in range(options.rounds):
            for name in ATTACKS:
                neighbour.attack = name
                arguments = (aim, options.seed + number, options.share, [name])
                made = _made(arguments, f"round {number + 1}: {name}", options)
                count, ends = made[name]
                num_cases[name] += count
                statuses[name] += ends
            neighbour.attack = "between rounds"
            time.sleep(SETTLE_S)
            sizes.append(tree.memory_bytes())
    finally:
        neighbour.is_over = True
        thread.join()
    report.facts["seed, rounds"] = f"{options.seed}, {options.rounds}"
    report.facts["cases"] = f"{num_cases.total():,}"
    report.facts["memory after each round"] = ", ".join(map(readable_bytes, sizes))
    rows = [_row(name, num_cases[name], statuses[name], neighbour.seconds[name]) for name in ATTACKS]
    columns = ["attack", "cases", "statuses", "neighbour's calls", "their p99 in ms", "slowest"]
    report.tables.append(Table("Attacks", columns, rows))
    slow = [seconds for name in ATTACKS for seconds in neighbour.seconds[name]]
    imprecise = sum(
        count
        for name in ("damaged messages", "compressed bombs")
        for code, count in statuses[name].items()
        if code not in PRECISE
    )
    codes = calls_by_code(server.metrics_port)
    num_internal = int(codes.get("INTERNAL", 0) + codes.get("UNKNOWN", 0))
    num_rows = int(total(server.metrics_port, "requests_running", "requests_waiting"))
    p99_ms = 1000 * nearest_rank(slow, 0.99)
    report.bounds += [
        equals("processes that came or went", len(pids ^ tree.pids()), 0),
        equals("neighbour's calls that failed", dict(neighbour.failures) or 0, 0),
        equals("damaged messages and bombs without a precise status", imprecise, 0),
        equals("calls that the server counts as INTERNAL or UNKNOWN", num_internal, 0),
        equals("rows that run or wait at the end", num_rows, 0),
    ]
    if not options.in_process:
        report.bounds.append(at_most("neighbour's p99 over all attacks", p99_ms, 1000 * NEIGHBOUR_S, " ms"))
    if len(sizes) >= 4:
        first = sizes[len(sizes) // 3]
        growth = 100 * (sizes[-1] / first - 1)
        report.bounds.append(
            at_most("growth of memory after the first third", growth, 100 * MAX_GROWTH, " %")
        )


def _row(name: str, num_cases: int, statuses: Counter[str], seconds: Sequence[float]) -> list[str]:
    told = ", ".join(f"{count:,} {code}" for code, count in statuses.most_common()) or "none is read"
    times = [f"{1000 * nearest_rank(seconds, share):.0f}" for share in (0.99, 1.0)] if seconds else ["", ""]
    return [name, f"{num_cases:,}", told, f"{len(seconds):,}", *times]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=8)
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of a round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--in-process", action="store_true", help="quicker to start; the latencies mean nothing"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the server")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report = Report("hostile")
    with running_server(BUNDLES, overrides=options.set) as server:
        run(server, options, report)
        report.facts["seconds to stop"] = f"{server.stop():.2f}"
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
