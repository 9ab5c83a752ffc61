"""A training with all that is random in one, small enough to be run many times."""

import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dragoman.model.recipe import Recipe
from dragoman.model.training.step import TrainingStep
from dragoman.model.training.train import Beginning, train

RESUME = Beginning(resume=True)


def capitals(tmp_path: Path) -> dict[str, Any]:
    """Its recipe: data order, dropout of every kind, cuts of words, R-Drop are all random; its corpus is written."""
    rng = random.Random(5)
    words = sorted({"".join(rng.choices("abcdef", k=rng.randint(1, 6))) for _ in range(400)})
    (tmp_path / "pairs.tsv").write_text("".join(f"{word}\t{word.upper()}\n" for word in words))
    return {
        "name": "capitals",
        "task": "translation",
        "corpus": {"kind": "tsv", "train": "pairs.tsv", "validation_share": 0.1, "folder": str(tmp_path)},
        "tokenizer": {"kind": "bpe", "vocabulary_size": 60, "dropout": 0.2, "num_editions": 2},
        "model": {
            "width": 16,
            "num_heads": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "max_source_tokens": 8,
            "max_target_tokens": 8,
            "dropout": 0.1,
            "attention_dropout": 0.1,
        },
        "training": {
            "max_steps": 40,
            "batch_tokens": 128,
            "max_learning_rate": 5e-3,
            "warmup_steps": 2,
            "schedule": "inverse_sqrt",  # the same however many steps follow
            "optimizer": "muon",
            "r_drop": 1.0,
            "accumulation_steps": 2,
            "average_checkpoints": 2,
            "evaluation_interval_steps": 7,
            "state_interval_s": 0.0,
            "num_threads": 1,
        },
    }


def recipe(settings: dict[str, Any], **training: object) -> Recipe:
    return Recipe.load({**settings, "training": {**settings["training"], **training}}, source="test")


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


@functools.cache
def undisturbed(optimizer: str = "muon") -> bytes:
    """The weights of the training that nothing stops: one that is stopped and goes on has to end with these."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = recipe(capitals(Path(folder)), optimizer=optimizer)
        train(chosen, Path(folder) / "run", show_progress=False)
        return weights(Path(folder) / "run")


def stop_after(monkeypatch: pytest.MonkeyPatch, chosen: Recipe, out: Path, num_steps: int) -> None:
    original = TrainingStep.run
    done = 0

    def run(*arguments: Any, **named: Any) -> Any:
        nonlocal done
        if done == num_steps:
            raise KilledError
        done += 1
        return original(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(TrainingStep, "run", run)
        train(chosen, out, show_progress=False)


class KilledError(BaseException):
    """Stands for a SIGKILL: nothing after it runs, no handler, no clean-up of the loop's own."""
