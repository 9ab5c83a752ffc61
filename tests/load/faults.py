"""Faults of a loaded server, one after another: what becomes of calls, and when it is ready again.

    python -m tests.load.faults
    python -m tests.load.faults --only "SIGKILL lane" "disk full"

Callers that repeat nothing, and callers with our client, ask two fronts and two lanes for translations. Each call has
to end with the right answer, or with a status that our client repeats. A server is ready again when new connections get
right answers, five in a row, and all of its processes are there. A fault that this machine does not allow (no network
namespace, no file system in memory, no libfaketime) is named as not tried.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import add_json_option, argument_parser, positive
from tests.load.crowd import progress_bar
from tests.load.fault_list import FAULTS, Fault, NotHere
from tests.load.report import Report, Table, equals
from tests.load.steady_callers import SteadyCallers

BEFORE_S, AFTER_S = 0.5, 0.5


@dataclass(frozen=True)
class Outcome:
    """What came of a fault.

    Attributes:
        plain: calls of callers that repeat nothing, by what became of them.
        repeated: calls of callers with our client.
        ready_s: when the server was ready again; None: not within the fault's limit.
    """

    fault: Fault
    plain: Counter[str]
    repeated: Counter[str]
    ready_s: float | None

    @property
    def otherwise(self) -> dict[str, int]:
        """Calls that ended in another way than they may."""
        return {what: count for what, count in self.plain.items() if what not in {"right", "retryable"}}

    @property
    def row(self) -> list[str]:
        failed = self.repeated.total() - self.repeated["right"]
        ready = "never" if self.ready_s is None else f"{self.ready_s:.2f}"
        counts = [f"{self.plain['right']:,}", f"{self.plain['retryable']:,}", str(self.otherwise or 0)]
        own = f"{self.repeated['right']:,}, {failed}"
        return [self.fault.name, *counts, own, ready, f"{self.fault.limit_s:g}"]


async def undergo(fault: Fault, folder: Path, num_callers: int) -> Outcome:
    """Serve, call, do it, wait.

    Raises:
        NotHere: this machine does not allow it.
    """
    scene = fault.scene(folder)
    try:
        await asyncio.to_thread(scene.start)
        credentials = scene.credentials
        callers = SteadyCallers(scene.target, credentials)
        wanted = scene.tree.counts()
        async with callers.calling(num_callers):
            await asyncio.sleep(BEFORE_S)
            callers.restart_counts()
            since_s = await fault.happens(scene)
            ready_s = await scene.ready_again(wanted, since_s, fault.limit_s)
            await asyncio.sleep(AFTER_S)
        problem = await fault.check(scene)
        if problem:
            callers.plain[problem] += 1
        return Outcome(fault, callers.plain, callers.repeated, ready_s)
    finally:
        await asyncio.to_thread(scene.close)


def run(names: Sequence[str], num_callers: int, report: Report) -> None:
    outcomes, not_tried = [], []
    with progress_bar() as progress:
        bar = progress.add_task("faults", total=len(names))
        for name in names:
            progress.update(bar, description=name)
            with tempfile.TemporaryDirectory(prefix="dragoman-fault-") as folder:
                try:
                    outcomes.append(asyncio.run(undergo(FAULTS[name], Path(folder), num_callers)))
                except NotHere as error:
                    not_tried.append([name, str(error)])
            progress.advance(bar)
    columns = ["fault", "answered right", "failed, may be repeated", "otherwise", "our client: right, failed"]
    columns += ["ready again after s", "limit"]
    report.tables.append(Table("Calls from the fault on", columns, [each.row for each in outcomes]))
    if not_tried:
        report.tables.append(Table("Not tried", ["fault", "why"], not_tried))
    late = [each.fault.name for each in outcomes if each.ready_s is None]
    others = {each.fault.name: each.otherwise for each in outcomes if each.otherwise}
    unrepeated = {
        each.fault.name: dict(each.repeated)
        for each in outcomes
        if each.fault.is_hidden and each.repeated.total() != each.repeated["right"]
    }
    report.bounds += [
        equals("faults with calls that ended in another way than right or retryable", others or 0, 0),
        equals("faults after which the server was not ready in time", late or 0, 0),
        equals("faults that our client does not hide where it should", unrepeated or 0, 0),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="FAULT", help="of: " + ", ".join(FAULTS))
    parser.add_argument("--callers", type=positive, default=6, help="of each kind")
    add_json_option(parser)
    options: argparse.Namespace = parser.parse_args(arguments)
    report, began_s = Report("faults"), time.monotonic()
    run(options.only or list(FAULTS), options.callers, report)
    report.facts["seconds"] = f"{time.monotonic() - began_s:.0f}"
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
