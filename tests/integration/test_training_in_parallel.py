"""Two processes under torchrun train as one does with the same batches."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dragoman.common.errors import UsageError
from dragoman.model.recipe import load_recipe
from dragoman.model.training import train as training
from dragoman.model.training.distributed import World

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name = "capitals"
task = "translation"
[corpus]
kind = "tsv"
train = "pairs.tsv"
validation_share = 0.1
[tokenizer]
kind = "character"
[model]
width = 16
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
max_source_tokens = 8
max_target_tokens = 8
dropout = 0.0
[training]
max_steps = 30
batch_tokens = 96
optimizer = "adamw"
max_learning_rate = 5e-3
warmup_steps = 2
schedule = "constant"
accumulation_steps = 2
evaluation_interval_steps = 10
average_checkpoints = 2
precision = "fp32"
num_threads = 1
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capitals")
    words = [a + b * n + c for a in "abcde" for b in "abcde" for c in "abcdef" for n in (1, 4)]
    (folder / "pairs.tsv").write_text("".join(f"{word}\t{word.upper()}\n" for word in words))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def train(corpus: Path, out: Path, num_processes: int, *options: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [*launcher, "-m", "dragoman", "train", str(corpus / "recipe.toml"), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *options],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )


def figures(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def close(one: Path, other: Path) -> None:
    ours, theirs = (load_file(run / "model.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # A key's bias changes no attention weight: its gradient is rounding, which Adam blows up to full steps.
        if name.endswith(("query_key_value.bias", "key_value.bias")):
            continue
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the process of the tests: another one would take seconds to import what is here already."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    training.train(load_recipe(str(corpus / "recipe.toml")), out, show_progress=False)
    return out


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_reach_what_one_reaches(corpus: Path, alone: Path, tmp_path: Path, how: str) -> None:
    done = train(corpus, tmp_path / "run", 2, "--set", f"training.parallel={how}")
    assert done.returncode == 0, done.stderr
    assert "in each of 2 processes" in done.stderr
    assert done.stderr.count("training.max_steps is reached") == 1, "one of them talks"
    close(tmp_path / "run", alone)
    for name in ("loss", "validation_loss"):
        torch.testing.assert_close(
            torch.tensor(figures(tmp_path / "run", name)),
            torch.tensor(figures(alone, name)),
            rtol=1e-3,
            atol=1e-4,
        )


def test_two_processes_resume(corpus: Path, alone: Path, tmp_path: Path) -> None:
    """Half the way in two processes, the rest after --resume; with --accept-changes, for the end is another."""
    half = train(corpus, tmp_path / "run", 2, "--set", "training.max_steps=14")
    assert half.returncode == 0, half.stderr
    rest = train(corpus, tmp_path / "run", 2, "--resume", "--accept-changes")
    assert rest.returncode == 0, rest.stderr
    assert "resumed at step 14" in rest.stderr
    close(tmp_path / "run", alone)


def test_standard_input_is_for_one_process(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        training, "joined_world", lambda _: contextlib.nullcontext(World(rank=0, size=2, num_local=2))
    )
    piped = load_recipe(str(corpus / "recipe.toml"), ["corpus.train=-"])
    with pytest.raises(UsageError, match="2 processes cannot share the standard input"):
        training.train(piped, tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()
