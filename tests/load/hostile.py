"""Attacks on a server, and on one with TLS that asks for certificates, while a neighbour goes on calling it.

    python -m tests.load.hostile --rounds 10

All attacks take turns, round after round. A neighbour on a connection of its own asks for a translation again and again
and must get it. Its latency is that of each attack. Memory is that of all
processes of the server, without pages of files, after each round.
"""

import argparse
import dataclasses
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from benchmarks.report import add_json_option, argument_parser, positive
from benchmarks.serving.load import nearest_rank
from tests.integration.certificates import Authority
from tests.integration.serving import BUNDLES
from tests.load.attacks import ATTACKS, DRAGOMAN, PRECISE, Aim, Attack
from tests.load.crowd import crowd
from tests.load.metrics_page import calls_by_code, total
from tests.load.report import Bound, Report, Table, at_most, equals
from tests.load.tls_attacks import ACCEPTED, TLS_ATTACKS, client_files
from tests.load.tree import Tree

from dragoman.cli.server_process import running_server
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
        with self._channel() as channel:
            method: Any = channel.unary_unary(self.aim.path)
            answer = None
            while not self.is_over:
                attack, began_s = self.attack, time.perf_counter()
                try:
                    got = method(self.aim.message, timeout=20)
                except grpc.RpcError as error:
                    self.failures[f"{attack}: {error.code().name}"] += 1
                else:
                    self.seconds[attack].append(time.perf_counter() - began_s)
                    answer = answer or got
                    if got != answer:
                        self.failures[f"{attack}: wrong"] += 1
                time.sleep(PAUSE_S)

    def _channel(self) -> grpc.Channel:
        target, folder = f"127.0.0.1:{self.aim.port}", self.aim.certificates
        if folder is None:
            return grpc.insecure_channel(target)
        root, key, chain = (folder / each for each in ("ca.pem", "client-key.pem", "client.pem"))
        credentials = grpc.ssl_channel_credentials(root.read_bytes(), key.read_bytes(), chain.read_bytes())
        return grpc.secure_channel(target, credentials)


def attack_in_turn(
    aim: Aim, seed: int, share: float, names: Sequence[str]
) -> dict[str, tuple[int, Counter[str]]]:
    """One round, in a process of its own."""
    attacks = {**ATTACKS, **TLS_ATTACKS}
    return {
        name: attacks[name][0](aim, random.Random(f"{seed} {name}"), max(1, round(attacks[name][1] * share)))
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


@dataclass
class Siege:
    """All attacks on one port, and what came of them.

    Attributes:
        title: of its table.
        what: stands before its bounds and facts.
        aim: without a port.
    """

    title: str
    what: str
    aim: Aim
    attacks: Mapping[str, tuple[Attack, int]]
    num_cases: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def run(self, overrides: Sequence[str], options: argparse.Namespace, report: Report) -> None:
        """Attack a server of its own."""
        with running_server(BUNDLES, overrides=[*overrides, *options.set]) as server:
            neighbour = Neighbour(dataclasses.replace(self.aim, port=server.port))
            tree = Tree(server.process.pid)
            pids = tree.pids()
            sizes = self._attack(neighbour, tree, options)
            codes = calls_by_code(server.metrics_port)
            num_internal = int(codes.get("INTERNAL", 0) + codes.get("UNKNOWN", 0))
            num_rows = int(total(server.metrics_port, "requests_running", "requests_waiting"))
            self._describe(neighbour, sizes, report)
            report.bounds += [
                equals(f"{self.what}processes that came or went", len(pids ^ tree.pids()), 0),
                equals(f"{self.what}neighbour's calls that failed", dict(neighbour.failures) or 0, 0),
                equals(f"{self.what}calls that the server counts as INTERNAL or UNKNOWN", num_internal, 0),
                equals(f"{self.what}rows that run or wait at the end", num_rows, 0),
                *self._of_statuses(),
                *self._of_times(neighbour, options),
                *self._of_memory(sizes),
            ]
            report.facts[f"{self.what}seconds to stop"] = f"{server.stop():.2f}"

    def _attack(self, neighbour: Neighbour, tree: Tree, options: argparse.Namespace) -> list[int]:
        """Returns the server's memory after each round."""
        sizes = []
        thread = threading.Thread(target=neighbour.call_again_and_again)
        thread.start()
        try:
            for number in range(options.rounds):
                for name in self.attacks:
                    neighbour.attack = name
                    arguments = (neighbour.aim, options.seed + number, options.share, [name])
                    count, ends = _made(arguments, f"round {number + 1}: {name}", options)[name]
                    self.num_cases[name] += count
                    self.statuses[name] += ends
                neighbour.attack = "between rounds"
                time.sleep(SETTLE_S)
                sizes.append(tree.memory_bytes())
        finally:
            neighbour.is_over = True
            thread.join()
        return sizes

    def _describe(self, neighbour: Neighbour, sizes: Sequence[int], report: Report) -> None:
        report.facts[f"{self.what}cases"] = f"{self.num_cases.total():,}"
        report.facts[f"{self.what}memory after each round"] = ", ".join(map(readable_bytes, sizes))
        rows = [
            _row(name, self.num_cases[name], self.statuses[name], neighbour.seconds[name])
            for name in self.attacks
        ]
        columns = ["attack", "cases", "statuses", "neighbour's calls", "their p99 in ms", "slowest"]
        report.tables.append(Table(self.title, columns, rows))

    def _of_statuses(self) -> Iterator[Bound]:
        precise = ("damaged messages", "compressed bombs")
        if set(precise) <= self.attacks.keys():
            ends = sum((self.statuses[name] for name in precise), Counter[str]())
            imprecise = sum(count for code, count in ends.items() if code not in PRECISE)
            yield equals("damaged messages and bombs without a precise status", imprecise, 0)
        if (damaged := "damaged client certificates") in self.attacks:
            yield equals(f"{self.what}{damaged} that were accepted", self.statuses[damaged][ACCEPTED], 0)

    def _of_times(self, neighbour: Neighbour, options: argparse.Namespace) -> Iterator[Bound]:
        if not options.in_process:
            seconds = [each for name in self.attacks for each in neighbour.seconds[name]]
            p99_ms = 1000 * nearest_rank(seconds, 0.99)
            what = f"{self.what}neighbour's p99 over all attacks"
            yield at_most(what, p99_ms, 1000 * NEIGHBOUR_S, " ms")

    def _of_memory(self, sizes: Sequence[int]) -> Iterator[Bound]:
        if len(sizes) >= 4:
            growth = 100 * (sizes[-1] / sizes[len(sizes) // 3] - 1)
            what = f"{self.what}growth of memory after the first third"
            yield at_most(what, growth, 100 * MAX_GROWTH, " %")


def _row(name: str, num_cases: int, statuses: Counter[str], seconds: Sequence[float]) -> list[str]:
    counts = ", ".join(f"{count:,} {code}" for code, count in statuses.most_common()) or "none is read"
    times = [f"{1000 * nearest_rank(seconds, share):.0f}" for share in (0.99, 1.0)] if seconds else ["", ""]
    return [name, f"{num_cases:,}", counts, f"{len(seconds):,}", *times]


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
    report.facts["seed, rounds"] = f"{options.seed}, {options.rounds}"
    Siege("Attacks", "", DRAGOMAN, ATTACKS).run((), options, report)
    with tempfile.TemporaryDirectory(prefix="dragoman-hostile-") as name:
        authority = Authority.in_folder(Path(name))
        client_files(authority)
        overrides = [*authority.settings, f"security.tls_client_ca={authority.folder / 'ca.pem'}"]
        overrides.append('security.client_certificates={"*" = ["infer"]}')
        aim = dataclasses.replace(DRAGOMAN, certificates=authority.folder)
        Siege("Attacks on a port of TLS", "TLS: ", aim, TLS_ATTACKS).run(overrides, options, report)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
