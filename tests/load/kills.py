"""SIGKILL for lanes, hosts and fronts of a loaded server, at random moments: what becomes of calls, memory and files.

    python -m tests.load.kills models/dates/1 --kills 100

Callers ask for translations of the bundle's golden inputs, without repeating anything, and know the right answers.
Others use `dragoman.AsyncClient`, which repeats what may be repeated. Fails where an answer was wrong, a call ended
with a status that says not to try again, or something was left behind.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from benchmarks.report import add_json_option, argument_parser, positive
from tests.integration.serving import BUNDLES
from tests.load.report import Report, Table, equals
from tests.load.steady_callers import SteadyCallers
from tests.load.tree import Tree, shared_memory

from dragoman.cli.server_process import ServerProcess, running_server
from dragoman.client import AsyncClient
from dragoman.common.memory import readable_bytes

RETRYABLE = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
SETTLE_S = 3.0
PATIENCE_S = 30.0
WEIGHTS = {"lane": 8, "host": 1, "front": 1}


async def kill_again_and_again(tree: Tree, num_kills: int) -> tuple[Counter[str], dict[str, list[float]]]:
    """Kill; returns how many of each kind, and the seconds until as many processes of that kind were there again."""
    counts: Counter[str] = Counter()
    seconds: dict[str, list[float]] = defaultdict(list)
    wanted = tree.counts()
    while counts.total() < num_kills:
        await asyncio.sleep(random.uniform(0.02, 0.6))
        there = tree.by_kind()
        [kind] = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if not there[kind]:  # none is left, or there are no such
            continue
        victim = random.choice(there[kind])
        victim.send_signal(signal.SIGKILL)
        began = time.monotonic()
        counts[kind] += 1
        if random.random() < 0.5:  # the next one dies while this one is being replaced
            continue
        while tree.counts() != wanted or victim.pid in tree.pids():
            if time.monotonic() > began + PATIENCE_S:
                sys.exit(f"no {kind} has come for {victim}")
            await asyncio.sleep(0.002)
        seconds[kind].append(time.monotonic() - began)
    return counts, seconds


async def run(server: ServerProcess, options: argparse.Namespace, report: Report) -> None:
    model = options.bundle.parent.name
    manifest = json.loads((options.bundle / "bundle.json").read_text())
    texts = list(dict.fromkeys(example["text"] for example in manifest["golden_examples"]))[:64]
    async with AsyncClient(server.target) as client:
        answered = await client.translate(texts, model=model)
    answers = {text: each.text for text, each in zip(texts, answered, strict=True)}
    load = SteadyCallers(server.target, None, model, answers, num_texts=4, retryable=RETRYABLE)
    tree = Tree(server.process.pid)
    async with load.calling(options.callers):
        await asyncio.sleep(SETTLE_S)
        before, files, shared = tree.memory_bytes(), tree.num_files(), shared_memory()
        counts, seconds = await kill_again_and_again(tree, options.kills)
        await asyncio.sleep(SETTLE_S)
        report.facts["memory of all processes"] = (
            f"{readable_bytes(before)} before, {readable_bytes(tree.memory_bytes())} after"
        )
        report.facts["open files"] = f"{files} before, {tree.num_files()} after"
    rows = [
        [kind, str(count), f"{statistics.median(seconds[kind]):.3f}", f"{max(seconds[kind]):.3f}"]
        for kind, count in counts.items()
        if seconds[kind]
    ]
    columns = ["process", "killed", "median seconds until all were there again", "most"]
    report.tables.append(Table("SIGKILL at random moments", columns, rows))
    for who, counter in (("repeat nothing", load.plain), ("use our client", load.repeated)):
        report.facts[f"calls that {who}"] = ", ".join(f"{count:,} {what}" for what, count in counter.items())
    bad = sum(count for what, count in load.plain.items() if what not in {"right", "retryable"})
    report.bounds += [
        equals("calls without retries that ended in another way than right or retryable", bad, 0),
        equals(
            "calls with our client that were not right", load.repeated.total() - load.repeated["right"], 0
        ),
        equals("processes that nobody waited for", tree.num_zombies(), 0),
        equals("left in shared memory", sorted(shared_memory() - shared) or "nothing", "nothing"),
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "bundle",
        type=Path,
        nargs="?",
        default=BUNDLES / "spell" / "2",
        help="of translation: MODELS/NAME/VERSION",
    )
    parser.add_argument("--kills", type=positive, default=100)
    parser.add_argument("--callers", type=positive, default=8, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the server")
    add_json_option(parser)
    options = parser.parse_args()
    random.seed(options.seed)
    report = Report("kills")
    with tempfile.TemporaryDirectory() as models:
        shutil.copytree(options.bundle, Path(models) / options.bundle.parent.name / "1")
        settings = ["engine.lanes_run_in=processes", *options.set]
        with running_server(Path(models), overrides=settings) as server:
            asyncio.run(run(server, options, report))
            report.facts["seconds to stop"] = f"{server.stop():.2f}"
    sys.exit(report.finish(options))


if __name__ == "__main__":
    main()
