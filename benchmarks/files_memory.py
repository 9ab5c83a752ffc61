"""The memory of `dragoman translate-files`, all its processes together, while it answers a file.

    python -m benchmarks.files_memory corpus.parquet --bundle models/dates/1 --workers 2

Reads the proportional set size (PSS) of each process from /proc five times a second: pages that processes share are
counted once. Linux only.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

_INTERVAL_S = 0.2
_MIB = 2**20


def tree_mib(process: psutil.Process) -> dict[str, float]:
    """The memory of a process and its children, in MiB, by their names."""
    sizes: dict[str, float] = {}
    for each in [process, *process.children(recursive=True)]:
        try:
            name = "command" if each == process else each.name()
            sizes[name] = each.memory_full_info().pss / _MIB
        except psutil.Error:  # it has just ended
            continue
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="what to answer")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="dragoman-files-memory-") as folder:
        command = [sys.executable, "-m", "dragoman", "translate-files", options.file]
        command += ["--bundle", options.bundle, "--workers", str(options.workers)]
        with subprocess.Popen([*command, "--out", str(Path(folder) / "out")]) as run:
            process = psutil.Process(run.pid)
            while run.poll() is None:
                samples.append(tree_mib(process))
                time.sleep(_INTERVAL_S)
        if run.returncode:
            sys.exit(f"dragoman translate-files ended with exit code {run.returncode}")
    working = [each for each in samples if len(each) == options.workers + 2]
    quarter = max(1, len(working) // 4)
    for name in sorted({name for each in working for name in each}):
        sizes = [each.get(name, 0.0) for each in working]
        print(
            f"{name:<10} first quarter {statistics.median(sizes[:quarter]):.0f} MiB, "
            f"last {statistics.median(sizes[-quarter:]):.0f}, most {max(sizes):.0f}"
        )
    sums = [sum(each.values()) for each in working]
    print(
        f"{'together':<10} first quarter {statistics.median(sums[:quarter]):.0f} MiB, "
        f"last {statistics.median(sums[-quarter:]):.0f}, most {max(sums):.0f}"
    )


if __name__ == "__main__":
    main()
