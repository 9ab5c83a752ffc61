"""What the loop promises beyond learning: sums over parts, averages, limits, and errors of one line."""

import io
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from dragoman.common.errors import OperationError
from dragoman.model.batching import Batch, BatchSource, Pairs, in_order
from dragoman.model.corpora.load import load_corpus
from dragoman.model.errors import TrainingError
from dragoman.model.loss import mean_loss
from dragoman.model.recipe import Recipe, TrainingSettings
from dragoman.model.run import load_run
from dragoman.model.tokenizer import END_ID
from dragoman.model.training import validation
from dragoman.model.training.checkpoints import CheckpointKeeper, load_best_weights
from dragoman.model.training.data import encode_corpus
from dragoman.model.training.distributed import World
from dragoman.model.training.limits import Limits
from dragoman.model.training.meter import Meter
from dragoman.model.training.progress import Reporter
from dragoman.model.training.step import TrainingStep
from dragoman.model.training.train import train
from dragoman.model.transformer import Dimensions, TranslationModel, build_model

pytestmark = pytest.mark.usefixtures("one_core", "no_charts")


def recipe(folder: Path, **changes: Any) -> Recipe:
    """A few letters to the same letters in capitals."""
    rng = random.Random(5)
    words = sorted({"".join(rng.choices("abcdef", k=rng.randint(1, 4))) for _ in range(600)})
    (folder / "pairs.tsv").write_text("".join(f"{word}\t{word.upper()}\n" for word in words))
    settings: dict[str, Any] = {
        "name": "capitals",
        "task": "translation",
        "corpus": {"kind": "tsv", "train": "pairs.tsv", "validation_share": 0.1, "folder": str(folder)},
        "tokenizer": {"kind": "character"},
        "model": {
            "width": 32,
            "num_heads": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "max_source_tokens": 8,
            "max_target_tokens": 8,
            "dropout": 0.0,
        },
        "training": {
            "max_steps": 10,
            "batch_tokens": 256,
            "max_learning_rate": 5e-3,
            "warmup_steps": 5,
            "schedule": "constant",
            "evaluation_interval_steps": 5,
            "label_smoothing": 0.0,
            **changes,
        },
    }
    return Recipe.load(settings, source="test")


def small_model() -> TranslationModel:
    torch.manual_seed(0)
    model = build_model(Dimensions("translation", 20, 16, 2, 2, 32, 1, 1, 8, 8))
    assert isinstance(model, TranslationModel)
    return model


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_accumulation_equals_the_bigger_batch(label_smoothing: float) -> None:
    """Parts of unlike sizes count by their tokens, not each the same."""
    rng = random.Random(0)
    targets = [[rng.randrange(4, 20) for _ in range(length)] for length in (1, 1, 2, 7, 6, 7)]
    [whole] = in_order(Pairs([[*target, END_ID] for target in targets], targets), 1000)
    assert whole.source_ids is not None
    parts = [
        Batch(whole.source_ids[rows], whole.input_ids[rows], whole.label_ids[rows])
        for rows in (slice(0, 3), slice(3, 6))
    ]
    assert parts[0].num_labels != parts[1].num_labels
    settings = TrainingSettings(max_steps=1, label_smoothing=label_smoothing, max_gradient_norm=0)
    results = []
    for batches in ([whole], parts):
        model = small_model()
        results.append(TrainingStep(model, settings, torch.float32).run(batches, rate=0.0))
    for one, other in zip(*results, strict=True):  # the loss, and the gradient's norm
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


@pytest.mark.parametrize("batch_tokens", [30, 64, 150])
def test_padding_and_tokens_are_counted(batch_tokens: int) -> None:
    rng = random.Random(0)
    targets = [[rng.randrange(4, 20) for _ in range(rng.randint(1, 9))] for _ in range(100)]
    pairs = Pairs([[*target, END_ID] for target in targets], targets)
    meter, source = Meter(World()), BatchSource(pairs, batch_tokens, seed=1)
    num_passed = 0
    while num_passed < 2 * len(targets):
        batch = pairs.batch(source.next_rows())
        meter.add(torch.zeros(()), torch.zeros(()), 1e-3, [batch])
        num_passed += len(batch.label_ids)
    num_tokens, num_cells = meter.counts()
    assert num_tokens == 2 * 2 * sum(len(target) + 1 for target in targets)  # two sides, two passes
    assert num_tokens <= num_cells < num_tokens / 0.75
    assert meter.read(step=7)["loss"] == 0


def test_the_mean_of_the_best_checkpoints_is_taken_when_it_is_better(tmp_path: Path) -> None:
    # Places around a good one, as a high rate leaves them. Not from a training: whether a short one ends among such
    # places depends on the last bit of a sum.
    settings = recipe(tmp_path, max_steps=100)
    train(settings, tmp_path / "run", show_progress=False)
    run = load_run(tmp_path / "run")
    validation = encode_corpus(load_corpus(settings), run.tokenizer, settings, tmp_path / "shards").validation
    good = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    keeper = CheckpointKeeper(tmp_path / "kept", max_kept=4)
    for step in (1, 2):
        offset = {name: 0.1 * torch.randn_like(tensor) for name, tensor in good.items()}
        for sign in (-1, 1):
            weights = {name: good[name] + sign * offset[name] for name in good}
            run.model.load_state_dict(weights)
            keeper.add(10 * step + sign, weights, mean_loss(run.model, validation, 256))
    loss = load_best_weights(run.model, keeper.kept, lambda: mean_loss(run.model, validation, 256))
    assert loss == mean_loss(run.model, validation, 256) < keeper.kept[0].validation_loss / 2
    torch.testing.assert_close(run.model.state_dict(), good)


def test_a_mean_that_is_worse_than_the_best_is_not_taken(tmp_path: Path) -> None:
    # At a rate that falls, the last checkpoint is far better than the ones before it.
    settings = recipe(
        tmp_path, max_steps=60, schedule="cosine", evaluation_interval_steps=20, average_checkpoints=3
    )
    train(settings, tmp_path / "run", show_progress=False)
    last = load_file(tmp_path / "run" / "checkpoints" / "step-0000060.safetensors")
    for name, tensor in load_run(tmp_path / "run").model.state_dict().items():
        torch.testing.assert_close(tensor, last[name], atol=0, rtol=0)


def test_time_is_left_for_the_last_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    limits = Limits(TrainingSettings(max_minutes=1.0))
    now_s += 40.0
    assert limits.reached(5) is None
    limits.add_evaluation(15.0, final_s=3.0)  # and 2 s to write the run
    assert limits.progress(5) == 1.0
    assert limits.reached(5) == "max_minutes"


def test_weights_that_broke_in_the_last_step_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "sum_losses", lambda *_: (float("nan"), 1))
    with pytest.raises(TrainingError, match=r"^the loss is nan at step 5: lower [^\n]*$"):
        train(recipe(tmp_path), tmp_path / "run", show_progress=False)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(OperationError, match=r"^cannot write .*metrics\.jsonl: No space left on device$"),
        Reporter(tmp_path, Console(file=io.StringIO())) as reporter,
    ):
        reporter.record(1, {"loss": 1.0})


def test_each_validation_is_said_also_where_no_terminal_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe(tmp_path), tmp_path / "run")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines() if line.startswith("step")] == [
        "step 5",
        "step 10",
    ]
