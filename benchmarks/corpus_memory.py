"""The memory of a training whose corpus is larger than the memory one would give it.

    python -m benchmarks.corpus_memory --gigabytes 3 --plot corpus-memory.png

Makes a corpus of JSON Lines of this size, the same each time, runs `dragoman train` on it with a tiny model, and
reads the process's memory from /proc four times a second: anonymous (its own data) and file-backed (libraries, and
shards, which the kernel may drop when it likes). Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from benchmarks.report import add_plot_option, write_plot

_PHASES: Final = ("reading", "tokenizing", "encoding", "training")
_INTERVAL_S: Final = 0.25
_MIB: Final = 2**20
_CHUNK_LINES: Final = 20_000
_RECIPE: Final = """
name = "corpus-memory"
task = "translation"
[corpus]
kind = "jsonl"
train = "pairs.jsonl"
[tokenizer]
kind = "bpe"
vocabulary_size = 8000
[model]
width = 32
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
max_source_tokens = 128
max_target_tokens = 128
[training]
num_threads = 1
precision = "fp32"
max_steps = {steps}
batch_tokens = 1024
evaluation_interval_steps = {steps}
max_validation_examples = 200
num_quality_examples = 10
"""


class Sample(NamedTuple):
    """Memory of the process at a time since its start."""

    seconds: float
    phase: str
    anonymous_mib: float
    file_mib: float


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Different words of two to five syllables."""
    syllables = [
        c + v for c in ("b", "d", "f", "g", "k", "l", "m", "n", "r", "s", "t", "sch", "é") for v in "aeiou"
    ]
    made = dict.fromkeys("".join(rng.choice(syllables, rng.integers(2, 6))) for _ in range(2 * count))
    return list(made)[:count]


def pair_lines(num_bytes: int) -> Iterator[bytes]:
    """JSON Lines, `num_bytes` together: words by Zipf's law, each with one translation, some in another place.

    One line in 20,000 is empty, so that reading ends with a line that says so.
    """
    rng = np.random.default_rng(11)
    left, right = (np.array(words(rng, 30_000), dtype=object) for _ in range(2))
    weights = 1.0 / np.arange(1, min(len(left), len(right)) + 1)
    cumulative = np.cumsum(weights / weights.sum())
    while num_bytes > 0:
        lengths = rng.integers(5, 25, _CHUNK_LINES)
        drawn = np.minimum(np.searchsorted(cumulative, rng.random(lengths.sum())), len(weights) - 1)
        lines, start = [""], 0
        for length in lengths.tolist():
            row = drawn[start : start + length]
            target = np.concatenate([row[length // 2 :], row[: length // 2]])
            pair = {"source": " ".join(left[row]), "target": " ".join(right[target])}
            lines.append(json.dumps(pair, ensure_ascii=False))
            start += length
        content = ("\n".join(lines) + "\n").encode()
        num_bytes -= len(content)
        yield content


def memory(pid: int) -> tuple[float, float]:
    """Anonymous and file-backed resident memory in MiB."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name] = int(value) / 1024
    return fields["Anonymous:"], fields["Rss:"] - fields["Anonymous:"]


def sample(folder: Path, steps: int) -> list[Sample]:
    """Train on the corpus in `folder`, and watch."""
    (folder / "mine.toml").write_text(_RECIPE.format(steps=steps))
    run = folder / "run"
    command = [
        sys.executable,
        "-m",
        "dragoman",
        "train",
        str(folder / "mine.toml"),
        "--out",
        str(run),
    ]
    samples = []
    has_read = threading.Event()
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            print(f"  {line.rstrip()}", file=sys.stderr)
            if line.startswith("left out"):  # the empty lines: all has been read
                has_read.set()

    listener = threading.Thread(target=listen)
    listener.start()
    while process.poll() is None:
        phase = _PHASES[0]
        if (run / "corpus" / "index.json").exists() or (run / "model.safetensors").exists():
            phase = _PHASES[3]
        elif (run / "tokenizer.json").exists():
            phase = _PHASES[2]
        elif has_read.is_set():
            phase = _PHASES[1]
        try:
            samples.append(Sample(time.perf_counter() - started, phase, *memory(process.pid)))
        except (OSError, KeyError):  # it has just ended
            break
        time.sleep(_INTERVAL_S)
    listener.join()
    if code := process.wait():
        sys.exit(f"dragoman train ended with exit code {code}")
    return samples


def growth(values: list[float]) -> float:
    """From the first quarter's median to the last quarter's."""
    quarter = max(1, len(values) // 4)
    return statistics.median(values[-quarter:]) - statistics.median(values[:quarter])


def report(samples: list[Sample], corpus_bytes: int) -> None:
    print(
        f"{'phase':<12}{'seconds':>9}   {'anonymous MiB: min':>18}{'median':>8}{'max':>8}   "
        f"{'file-backed MiB: min':>20}{'median':>8}{'max':>8}"
    )
    growths = []
    for phase in _PHASES:
        of_phase = [one for one in samples if one.phase == phase]
        if not of_phase:
            print(f"{phase:<12}    too short to be seen")
            continue
        seconds = of_phase[-1].seconds - of_phase[0].seconds
        columns = [[one.anonymous_mib for one in of_phase], [one.file_mib for one in of_phase]]
        figures = [(min(column), statistics.median(column), max(column)) for column in columns]
        print(
            f"{phase:<12}{seconds:>9.1f}   {figures[0][0]:>18.0f}{figures[0][1]:>8.0f}{figures[0][2]:>8.0f}   "
            f"{figures[1][0]:>20.0f}{figures[1][1]:>8.0f}{figures[1][2]:>8.0f}"
        )
        growths.append(f"{phase} {growth(columns[0]):+.0f}")
    peak = max(one.anonymous_mib + one.file_mib for one in samples)
    print(
        f"corpus {corpus_bytes / _MIB:,.0f} MiB, peak resident {peak:,.0f} MiB; anonymous memory from the first "
        f"quarter of a phase to its last, MiB: {', '.join(growths)}"
    )


def plot(samples: list[Sample], path: Path) -> None:
    try:
        from matplotlib import figure  # noqa: PLC0415  it need not be there
    except ModuleNotFoundError:
        print(f"no {path}: matplotlib is not installed")
        return
    drawing = figure.Figure(figsize=(9, 4), layout="constrained")
    axes = drawing.subplots()
    seconds = [one.seconds for one in samples]
    axes.stackplot(
        seconds,
        [one.anonymous_mib for one in samples],
        [one.file_mib for one in samples],
        labels=["anonymous", "file-backed"],
    )
    for phase in _PHASES:
        if starts := [one.seconds for one in samples if one.phase == phase]:
            axes.axvline(starts[0], color="black", linewidth=0.5)
            axes.annotate(phase, (starts[0], 1.0), xycoords=("data", "axes fraction"), va="bottom")
    axes.set_xlabel("seconds")
    axes.set_ylabel("resident memory, MiB")
    axes.legend(loc="lower right")
    write_plot(path, drawing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the corpus")
    parser.add_argument("--steps", type=int, default=300, help="of training")
    add_plot_option(parser, "memory over time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dragoman-corpus-memory-") as name:
        corpus = Path(name) / "pairs.jsonl"
        with corpus.open("wb") as file:
            for content in pair_lines(int(options.gigabytes * 10**9)):
                file.write(content)
        samples = sample(Path(name), options.steps)
        report(samples, corpus.stat().st_size)
    if options.plot:
        plot(samples, options.plot)


if __name__ == "__main__":
    main()
