"""nanoGPT's recipe for a CPU: its train.py as a process, with the flags of its README."""

import contextlib
import importlib.util
import pickle
import re
import shutil
import sys
from pathlib import Path
from typing import Final

import torch
from benchmarks.race import CONTEXT, Result, cut_windows, mean_loss, run_timed
from torch import Tensor

__all__ = ["NUM_HEADS", "NUM_LAYERS", "WIDTH", "prepare_nanogpt", "run_nanogpt"]

WIDTH, NUM_HEADS, NUM_LAYERS = 128, 4, 4
_FILES: Final = (
    "train.py",
    "model.py",
    "configurator.py",
    "config",
    "data/shakespeare_char/prepare.py",
)
_COMMAND: Final = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    f"--block_size={CONTEXT} --batch_size=12 --n_layer={NUM_LAYERS} --n_head={NUM_HEADS} --n_embd={WIDTH} "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()
_STEP = re.compile(r"iter (\d+): loss .*, time ([\d.]+)ms")


def prepare_nanogpt(checkout: Path, text: Path, folder: Path) -> None:
    """Copy what of nanoGPT is needed to `folder` and run its prepare.py there."""
    for name in _FILES:
        source, target = checkout / name, folder / name
        if not source.exists():
            sys.exit(f"{checkout} is no checkout of nanoGPT: it has no {name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    data = folder / "data" / "shakespeare_char"
    shutil.copy(text, data / "input.txt")
    # prepare.py imports it for the download that it does not make when input.txt is there.
    (data / "requests.py").touch()
    run_timed([sys.executable, "prepare.py"], data, {})


def run_nanogpt(folder: Path, text: str, threads: int | None) -> Result:
    """Train with nanoGPT and measure the checkpoint that it leaves."""
    environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    lines = run_timed([sys.executable, *_COMMAND], folder, environment)
    steps = [(second, match) for second, line in lines if (match := _STEP.match(line))]
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    checkpoint = torch.load(folder / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
    with contextlib.redirect_stdout(None):  # it prints its size
        network = module.GPT(module.GPTConfig(**checkpoint["model_args"])).eval()
    network.load_state_dict(checkpoint["model"])
    ids = pickle.loads((folder / "data" / "shakespeare_char" / "meta.pkl").read_bytes())["stoi"]

    def logits_of(windows: Tensor) -> Tensor:
        # Without labels it would give logits of the last position only.
        logits: Tensor = network(windows[:, :-1], windows[:, 1:])[0]
        return logits

    return Result(
        name="nanoGPT",
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        num_steps=len(steps),
        process_s=steps[-1][0],
        loop_s=sum(float(match[2]) for _, match in steps) / 1_000,
        loss=mean_loss(logits_of, cut_windows([ids[character] for character in text])),
    )
