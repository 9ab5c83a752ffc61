"""Train the two small models that tests serve, and export each in fp32 and int8.

    python tools/make_fixtures.py [FOLDER]     FOLDER/spell/1, spell/2, count/1, count/2; else tests/fixtures/bundles

`spell` translates digits into words: "407" is "four zero seven". `count` goes on counting. Both are as small as learns
that surely. Corpora and seeds are fixed, so the same torch gives the same weights; `tests/conformance/test_fixtures.py`
says when bundles must be made anew.
"""

import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from dragoman.export.exporter import export_run
from dragoman.model.recipe import load_recipe
from dragoman.model.training.train import train
from dragoman.server.bundle.manifest import Precision

BUNDLES: Final = Path(__file__).parents[1] / "tests" / "fixtures" / "bundles"
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "int8")
"""Of versions 1 and 2."""
NAMES: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_DIGITS: Final = 13  # all of them "three": 77 characters

SPELL: Final = """
name = "spell"
description = "Digits as words; for tests."
task = "translation"
[corpus]
kind = "tsv"
train = "train.tsv"
validation = "validation.tsv"
test = "test.tsv"
[tokenizer]
kind = "character"
[model]
width = 32
num_heads = 4
num_kv_heads = 2
feed_forward_width = 64
num_encoder_layers = 1
num_decoder_layers = 2
max_source_tokens = 32
max_target_tokens = 80
dropout = 0.0
[training]
max_steps = 1500
batch_tokens = 4096
max_learning_rate = 0.01
warmup_steps = 50
label_smoothing = 0.0
evaluation_interval_steps = 300
num_threads = 1
"""
COUNT: Final = """
name = "count"
description = "Counting on; for tests."
task = "generation"
[corpus]
kind = "text"
train = "train.txt"
validation = "validation.txt"
test = "test.txt"
[tokenizer]
kind = "byte_bpe"
vocabulary_size = 300
[model]
width = 32
num_heads = 4
num_kv_heads = 2
feed_forward_width = 64
num_decoder_layers = 2
max_target_tokens = 256
dropout = 0.0
[training]
max_steps = 300
batch_tokens = 2048
max_learning_rate = 0.01
warmup_steps = 20
label_smoothing = 0.0
evaluation_interval_steps = 100
num_threads = 1
"""


def write_spelled(folder: Path) -> None:
    """Write pairs of digits and their names."""
    rng = random.Random(1)  # noqa: S311 no secret
    for name, num_pairs in (("train", 12_000), ("validation", 200), ("test", 300)):
        numbers = ("".join(rng.choices("0123456789", k=rng.randint(1, MAX_DIGITS))) for _ in range(num_pairs))
        lines = (f"{number}\t{' '.join(NAMES[int(digit)] for digit in number)}\n" for number in numbers)
        (folder / f"{name}.tsv").write_text("".join(lines))


def write_counted(folder: Path) -> None:
    """Write one text a split: counting from zero to nine, over and over, each line from another number."""
    rng = random.Random(2)  # noqa: S311
    for name, num_lines in (("train", 3_000), ("validation", 40), ("test", 120)):
        lines = []
        for _ in range(num_lines):
            first, length = rng.randrange(10), rng.randint(5, 60)
            lines.append(" ".join(NAMES[number % 10] for number in range(first, first + length)))
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def make(name: str, recipe: str, folder: Path, bundles: Path) -> None:
    """Train the model on the corpus in `folder`; write its bundles to `bundles`/`name`."""
    path = folder / f"{name}.toml"
    path.write_text(recipe)
    train(load_recipe(str(path)), folder / "run", show_progress=False)
    shutil.rmtree(bundles / name, ignore_errors=True)
    for version, precision in enumerate(PRECISIONS, 1):
        report = export_run(folder / "run", bundles / name / str(version), precision=precision)
        figures = ", ".join(f"{figure.metric} {figure.value:.4g}" for figure in report.quality)
        print(f"{report.bundle}: {report.num_bytes / 1000:.0f} kB, {figures}")


def main() -> None:
    """Make all, or say how."""
    bundles = Path(sys.argv[1]) if len(sys.argv) > 1 else BUNDLES
    for name, recipe, write in (("spell", SPELL, write_spelled), ("count", COUNT, write_counted)):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            make(name, recipe, Path(folder), bundles)


if __name__ == "__main__":
    main()
