"""One target under atheris, Python's libFuzzer, which looks for inputs that reach new code. `fuzz.py` runs it.

python -m tests.load.fuzz_guided entries --runs 50000 --seed 1 --findings FOLDER
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris

INSTRUMENTED = ["dragoman.server", "dragoman.v1", "dragoman.inference", "dragoman.common"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target")
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, required=True, help="folder for inputs that break something")
    options = parser.parse_args()
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.load.fuzz_seeds import seeds_of
        from tests.load.fuzz_targets import TARGETS

    corpus = Path(tempfile.mkdtemp(prefix="dragoman-corpus-"))
    for number, seed in enumerate(seeds_of(options.target)):
        (corpus / str(number)).write_bytes(seed)
    longest = max(4096, *(path.stat().st_size + 512 for path in corpus.iterdir()))
    arguments = [
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        f"-max_len={longest}",
        "-print_final_stats=1",
    ]
    arguments += [
        f"-artifact_prefix={options.findings}{os.sep}",
        "-rss_limit_mb=4096",
        "-timeout=60",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], TARGETS[options.target]())
    atheris.Fuzz()


if __name__ == "__main__":
    main()
