"""Mixed calls for a long time: is each answer right, is any lost or given twice, does anything leak?

    python -m tests.load.soak --calls 200000
    python -m tests.load.soak --minutes 60 --json soak.json

Processes of callers ask two models for answers with beams, seeded samples, rules, alternatives, scores and streams, and
know what each must get: an engine in this process has answered every distinct call alone beforehand. Some calls are
malformed; some callers cancel, have too little time, break their connections off or send half a call. Memory is that of
all processes of the server, without pages of files, while no call runs: after the first tenth and at the end.
"""

import argparse
import asyncio
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import add_json_option, argument_parser, positive
from tests.integration.serving import BUNDLES
from tests.load.callers import Plan, Tally, call_all
from tests.load.cases import Case, answer_cases, malformed_cases
from tests.load.crowd import crowd, progress_bar
from tests.load.metrics_page import calls_by_code, total
from tests.load.observed_server import SOCKET, num_tasks
from tests.load.report import Bound, Report, Table, at_most, equals
from tests.load.tree import Tree, shared_memory

from dragoman.cli.server_process import ServerProcess, running_server
from dragoman.common.memory import readable_bytes

MAX_GROWTH = 0.02
CALLS_FOR_MEMORY = 50_000
"""With fewer calls the first tenth has not yet touched all memory that a server touches."""
SETTLE_S = 20.0
LOOK_S = 2.0
REST_S, MAX_REST_S, REST_SHARE = 2.0, 60.0, 0.002
"""A server that is at rest gives memory back within seconds, also on a busy machine: looks go on until two in a row
differ by no more than that share."""
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""asyncio makes threads as they are needed, up to so many (concurrent.futures)."""
CALLS_PER_MINUTE = 40_000
"""More than any machine of ours makes: the minutes end the run, not the calls."""
PROGRAM = ("-m", "tests.load.observed_server")


@dataclass
class Curve:
    """Memory of the server while calls come."""

    tree: Tree
    by_kind: list[dict[str, int]] = field(default_factory=list)
    next_s: float = 0.0

    def watch(self, _: float) -> None:
        """Look now and then."""
        now_s = time.monotonic()
        if now_s >= self.next_s:
            self.next_s = now_s + LOOK_S
            self.by_kind.append(self.tree.memory_by_kind())

    def of(self, kind: str) -> str:
        """How the processes of a kind grew: eleven points, from the begin to the end."""
        last = len(self.by_kind) - 1
        return ", ".join(f"{self.by_kind[last * part // 10][kind] / 2**20:.1f}" for part in range(11))

    def at_rest(self) -> dict[str, int]:
        """Memory by kind of process once no call runs: a large message that is being parsed is no leak."""
        look, end_s = self.tree.memory_by_kind(), time.monotonic() + MAX_REST_S
        while time.monotonic() < end_s:
            time.sleep(REST_S)
            last, look = look, self.tree.memory_by_kind()
            if abs(sum(look.values()) - sum(last.values())) <= REST_SHARE * sum(last.values()):
                break
        return look


@dataclass(frozen=True)
class Held:
    """What a server holds while it has nothing to do."""

    processes: frozenset[int]
    num_files: int
    num_threads: int
    num_tasks: int
    num_rows: float

    @classmethod
    def of(cls, server: ServerProcess, tree: Tree, observed: Path) -> "Held":
        """Look once; rows are those that run or wait."""
        rows = total(server.metrics_port, "requests_running", "requests_waiting")
        return cls(frozenset(tree.pids()), tree.num_files(), tree.num_threads(), num_tasks(observed), rows)

    def is_within(self, before: "Held") -> bool:
        """Whether this is no more than what was held `before`."""
        mine, old = dataclasses.astuple(self)[1:], dataclasses.astuple(before)[1:]
        return self.processes == before.processes and all(a <= b for a, b in zip(mine, old, strict=True))


def settle(server: ServerProcess, tree: Tree, observed: Path, before: Held | None = None) -> Held:
    """What is held when nothing changes any more, or when it is no more than what was held `before`."""
    held, end_s = Held.of(server, tree, observed), time.monotonic() + SETTLE_S
    while time.monotonic() < end_s and not (before and held.is_within(before)):
        time.sleep(0.3)
        last, held = held, Held.of(server, tree, observed)
        if before is None and held == last:
            break
    return held


def cases_of(bundles: Sequence[Path], num_cases: int, seed: int) -> list[Case]:
    """Calls for all bundles, with some malformed ones."""
    cases: list[Case] = []
    with progress_bar() as progress:
        bar = progress.add_task("answering alone", total=num_cases * len(bundles))
        for bundle in bundles:
            cases += asyncio.run(answer_cases(bundle, num_cases, seed, lambda: progress.advance(bar)))
    malformed = malformed_cases(bundles[0].parent.name)
    return cases + malformed * max(1, len(cases) // (12 * len(malformed)))


def soak(bundles: Sequence[Path], options: argparse.Namespace) -> Report:
    """Serve, call, look."""
    report = Report("soak")
    cases = cases_of(bundles, options.cases, options.seed)
    with tempfile.TemporaryDirectory(prefix="dragoman-soak-") as name:
        models = Path(name) / "models"
        for bundle in bundles:
            (models / bundle.parent.name).mkdir(parents=True, exist_ok=True)
            (models / bundle.parent.name / bundle.name).symlink_to(bundle.resolve())
        observed, before = Path(name) / "tasks", shared_memory()
        os.environ[SOCKET] = str(observed)
        with running_server(models, overrides=options.set, program=PROGRAM) as server:
            _run(server, observed, cases, options, report)
            report.facts["seconds to stop"] = f"{server.stop():.2f}"
        left = sorted(shared_memory() - before)
        report.bounds.append(equals("left in shared memory", left or "nothing", "nothing"))
    return report


def _run(
    server: ServerProcess, observed: Path, cases: Sequence[Case], options: argparse.Namespace, report: Report
) -> None:
    tree = Tree(server.process.pid)
    # What is made at the first call of its kind is no leak.
    warm = call_all(Plan(server.target, cases, max(200, options.calls // 50), options.seed + 1000))
    held, curve = settle(server, tree, observed), Curve(tree)
    began_s = time.monotonic()
    whole = _call(server, cases, options, 0.1, curve)
    after_tenth = curve.at_rest()
    whole.add(_call(server, cases, options, 0.9, curve))
    seconds = time.monotonic() - began_s
    at_end = curve.at_rest()
    held_after = settle(server, tree, observed, held)
    _describe(report, whole, cases, seconds, curve)
    for kind, size in after_tenth.items():
        if size:
            report.facts[f"memory at rest after a tenth, at the end: {kind}"] = (
                f"{readable_bytes(size)}, {readable_bytes(at_end[kind])}"
            )
    report.bounds += _right(whole, warm)
    if whole.outcomes.total() >= CALLS_FOR_MEMORY:
        growth = 100 * (sum(at_end.values()) / sum(after_tenth.values()) - 1)
        report.bounds.append(
            at_most("growth of memory after the first tenth", growth, 100 * MAX_GROWTH, " %")
        )
    whole.add(warm)
    report.bounds += _counted(whole, calls_by_code(server.metrics_port))
    report.bounds += _kept(held, held_after)


def _call(
    server: ServerProcess, cases: Sequence[Case], options: argparse.Namespace, part: float, curve: Curve
) -> Tally:
    """Make this part of all calls."""
    share = max(1, round(part * options.calls) // options.processes)
    end_s = time.monotonic() + part * options.minutes * 60 if options.minutes else None
    plans = [
        Plan(server.target, cases, share, options.seed + 10 * number + round(part), end_s=end_s)
        for number in range(options.processes)
    ]
    whole = Tally()
    total_calls = share * len(plans)
    arguments = [(plan,) for plan in plans]
    for tally in crowd(call_all, arguments, title="calling", total=total_calls, watch=curve.watch):
        whole.add(tally)
    return whole


def _describe(report: Report, whole: Tally, cases: Sequence[Case], seconds: float, curve: Curve) -> None:
    num_calls = whole.outcomes.total()
    report.facts["calls"] = f"{num_calls:,} in {seconds:,.0f} s, {num_calls / seconds:,.0f} a second"
    report.facts["distinct calls with known answers"] = f"{len({case.message for case in cases}):,}"
    if curve.by_kind:
        for kind in ("server", "host", "lane"):
            report.facts[f"memory in MiB, {kind}, from the begin to the end"] = curve.of(kind)
    rows = [
        [behaviour, outcome, f"{count:,}"] for (behaviour, outcome), count in sorted(whole.outcomes.items())
    ]
    report.tables.append(Table("What callers did, and what they got", ["caller", "outcome", "calls"], rows))
    kinds = [[kind, f"{count:,}"] for kind, count in whole.kinds.most_common()]
    report.tables.append(Table("Right answers, by what was asked for", ["asked for", "calls"], kinds))
    if whole.wrong:
        report.tables.append(Table("Wrong", ["call"], [[each] for each in whole.wrong]))


def _right(whole: Tally, warm: Tally) -> list[Bound]:
    num_wrong = sum(count for (_, outcome), count in whole.outcomes.items() if outcome == "wrong")
    return [
        equals("wrong answers and statuses", num_wrong + len(warm.wrong), 0),
        equals("calls without an end", whole.num_begun - whole.outcomes.total(), 0),
    ]


def _counted(whole: Tally, counts: dict[str, float]) -> list[Bound]:
    """The server's own counts: no call is lost, none is answered twice."""
    bounds = []
    for name in sorted({*whole.statuses, *counts} - {"CANCELLED", "DEADLINE_EXCEEDED"}):
        if name == "UNIMPLEMENTED":  # refused before there is a record
            continue
        received, counted = whole.statuses[name], int(counts.get(name, 0))
        # Calls whose callers went away may be counted as anything.
        most = received + whole.num_unknown
        bounds.append(
            Bound(
                f"{name}: counted by the server, received by callers",
                f"{counted:,}, {received:,}",
                f"up to {whole.num_unknown:,} more",
                received <= counted <= most,
            )
        )
    num_sent = sum(whole.statuses.values()) + whole.num_unknown
    bounds.append(at_most("calls counted by the server, of those sent", sum(counts.values()), num_sent))
    return bounds


def _kept(before: Held, after: Held) -> list[Bound]:
    return [
        equals("processes that came or went", len(before.processes ^ after.processes), 0),
        at_most("open files, before the run and after", after.num_files, before.num_files),
        at_most("threads, before the run and after", after.num_threads, before.num_threads + POOL_THREADS),
        at_most("asyncio tasks, before the run and after", after.num_tasks, before.num_tasks),
        equals("rows that run or wait after the run", int(after.num_rows), 0),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--calls", type=positive, default=200_000, help="in all")
    parser.add_argument("--minutes", type=float, help="instead of --calls")
    parser.add_argument("--cases", type=positive, default=1_500, help="distinct calls for each model")
    parser.add_argument("--processes", type=positive, default=2, help="of callers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--bundle",
        type=Path,
        action="append",
        metavar="MODELS/NAME/VERSION",
        help="in place of the tests' bundles; may come twice",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the server")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    if options.minutes:
        options.calls = int(options.minutes * CALLS_PER_MINUTE)
    bundles = options.bundle or [BUNDLES / "spell" / "2", BUNDLES / "count" / "2"]
    return soak(bundles, options).finish(options)


if __name__ == "__main__":
    sys.exit(main())
