"""Damaged and random input for what reads the bytes of others: decoders of requests and metadata, readers of files.

    python -m tests.load.fuzz --cases 100000
    python -m tests.load.fuzz --cases 2000 --random-only

Two ways for each target. Random: sound inputs that are damaged from a seed. Guided: atheris (libFuzzer), which keeps
what reaches new code; it lies in a folder of its own, as it is a fuzzer and no part of the project. A target breaks
where it raises, crashes, or refuses in another way than it may. What broke it is kept and named.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import platformdirs
from benchmarks.report import add_json_option, argument_parser, positive
from rich.console import Console
from tests.load.crowd import progress_bar
from tests.load.fuzz_seeds import seeds_of
from tests.load.fuzz_targets import TARGETS
from tests.load.mutation import mutated
from tests.load.report import Report, Table, at_least, equals

ATHERIS: Final = "atheris==3.0.0"
ROOT: Final = Path(__file__).parents[2]
SHARES: Final = {
    "entries": 0.5,
    "calls": 0.12,
    "inference": 0.12,
    "metadata": 0.08,
    "files": 0.08,
    "manifests": 0.07,
    "tokenizers": 0.03,
}
"""Of all cases, by target: the slower a target, the less."""
RANDOM_SHARE: Final = 0.2
_DONE: Final = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def random_cases(name: str, num_cases: int, seed: int, findings: Path) -> tuple[int, list[str]]:
    """Returns how many cases ran and what broke."""
    target, seeds, rng = TARGETS[name](), seeds_of(name), random.Random(f"{seed} {name}")
    broken = []
    with progress_bar() as progress:
        bar = progress.add_task(f"{name}, random", total=num_cases)
        for number in range(num_cases):
            content = mutated(rng.choice(seeds), rng, most_changes=rng.choice((1, 2, 8)))
            try:
                target(content)
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                path = findings / f"{name}-{seed}-{number}"
                path.write_bytes(content)
                last = traceback.format_exception_only(error)[-1].strip()
                broken.append(f"{path}: {last}")
            progress.advance(bar)
    return num_cases, broken


def guided_cases(name: str, num_cases: int, seed: int, findings: Path) -> tuple[int, list[str]]:
    """The same with atheris, in a process of its own, which ends at the first thing that breaks."""
    command = [sys.executable, "-m", "tests.load.fuzz_guided", name, "--runs", str(num_cases)]
    command += ["--seed", str(seed), "--findings", str(findings)]
    paths = [str(atheris_folder()), str(ROOT / "src"), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with Console(stderr=True).status(f"{name}, guided: {num_cases:,} cases"):
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    counted = _DONE.search(done.stderr)
    if done.returncode == 0 and counted:
        return int(counted[1]), []
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    why = next(
        (line for line in lines if "Error" in line or "ERROR" in line), lines[-1] if lines else "no word"
    )
    return int(counted[1]) if counted else 0, [
        f"exit code {done.returncode}: {why}; inputs are in {findings}"
    ]


def atheris_folder() -> Path:
    """Where atheris lies; it is put there at the first use."""
    folder = platformdirs.user_cache_path("dragoman") / ATHERIS.replace("==", "-")
    if not (folder / "atheris").is_dir():
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*command, "--target", str(folder), "--no-deps", ATHERIS], check=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--cases", type=positive, default=100_000, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS, help="this one alone")
    parser.add_argument("--random-only", action="store_true", help="without atheris")
    parser.add_argument("--findings", type=Path, help="folder for inputs that break something")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    findings = options.findings or Path(tempfile.mkdtemp(prefix="dragoman-findings-"))
    findings.mkdir(parents=True, exist_ok=True)
    report, rows, total, broken = Report("fuzz"), [], 0, []
    shares = {options.target: 1.0} if options.target else SHARES
    for name, share in shares.items():
        wanted = round(options.cases * share)
        num_random = wanted if options.random_only else round(RANDOM_SHARE * wanted)
        ways = {"random": (random_cases, num_random), "guided": (guided_cases, wanted - num_random)}
        for way, (run, num_cases) in ways.items():
            if num_cases:
                count, failures = run(name, num_cases, options.seed, findings)
                total += count
                broken += failures
                rows.append([name, way, f"{count:,}", f"{len(failures)}"])
    report.facts["seed"] = str(options.seed)
    report.tables.append(Table("Cases", ["target", "way", "cases", "broken"], rows))
    if broken:
        report.tables.append(Table("Broken", ["what"], [[each] for each in broken[:20]]))
    report.bounds += [at_least("cases", total, 0.99 * options.cases), equals("broken", len(broken), 0)]
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
