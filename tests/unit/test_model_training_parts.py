"""The parts of the training loop: learning rate, optimizer, hardware, limits, checkpoints."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dragoman.common.errors import UsageError
from dragoman.model.errors import RunError
from dragoman.model.recipe import TrainingSettings
from dragoman.model.run import write_weights
from dragoman.model.training.checkpoints import Checkpoint, CheckpointKeeper, average_weights
from dragoman.model.training.hardware import choose_device, choose_precision, set_threads
from dragoman.model.training.limits import Limits
from dragoman.model.training.optimizer import learning_rate, new_optimizers
from dragoman.model.transformer import Dimensions, build_model

ROOT = Path(__file__).resolve().parents[2]


def settings(**values: object) -> TrainingSettings:
    return TrainingSettings.model_validate({"max_steps": 1000, **values})


def test_inverse_square_root_is_the_papers_formula() -> None:
    """Section 5.3: width^-0.5 * min(step^-0.5, step * warmup^-1.5), scaled to its peak."""
    chosen = settings(schedule="inverse_sqrt", warmup_steps=40, max_learning_rate=512**-0.5 * 40**-0.5)
    for step in (1, 2, 20, 39, 40, 41, 400, 4000):
        paper = 512**-0.5 * min(step**-0.5, step * 40**-1.5)
        assert learning_rate(chosen, step - 1, 0.0) == pytest.approx(paper)


def test_cosine_goes_from_the_peak_to_the_minimum() -> None:
    chosen = settings(schedule="cosine", warmup_steps=10, max_learning_rate=1.0, min_learning_rate=0.2)
    assert learning_rate(chosen, 4, 0.0) == pytest.approx(0.5)
    assert learning_rate(chosen, 500, 0.0) == pytest.approx(1.0)
    assert learning_rate(chosen, 500, 0.5) == pytest.approx(0.6)
    assert learning_rate(chosen, 500, 1 / 3) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 3)) / 2)
    assert learning_rate(chosen, 500, 1.0) == pytest.approx(0.2)


def test_a_constant_rate_without_warmup() -> None:
    chosen = settings(schedule="constant", warmup_steps=0, max_learning_rate=0.3)
    assert {learning_rate(chosen, step, 0.7) for step in (0, 1, 999)} == {0.3}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_matrices_of_linear_layers_decay(optimizer: str) -> None:
    model = build_model(Dimensions("translation", 11, 16, 2, 2, 16, 1, 1, 8, 8))
    optimizers = new_optimizers(model, settings(weight_decay=0.5, optimizer=optimizer), torch.float32)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [
        (type(each).__name__, group["weight_decay"], names[id(parameter)])
        for each in optimizers
        for group in each.param_groups
        for parameter in group["params"]
    ]
    assert sorted(name for _, _, name in held) == sorted(names.values()), "each weight once"
    plain = {name for _, decay, name in held if decay == 0.0}
    assert plain == {
        name for name in names.values() if "norm" in name or "bias" in name or "embedding" in name
    }
    others = {kind for kind, decay, _ in held if decay == 0.5}
    assert others == {"Muon" if optimizer == "muon" else "AdamW"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512_bf16 fma", torch.bfloat16),
        ("fpu amx_bf16 amx_tile", torch.bfloat16),
        ("fpu avx2 avx512f fma", torch.float32),
        ("", torch.float32),
    ],
)
def test_a_cpu_computes_in_bf16_only_with_instructions_for_it(
    tmp_path: Path, flags: str, expected: torch.dtype
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n")
    device = torch.device("cpu")
    assert choose_precision("auto", device, tmp_path / "cpuinfo") == expected
    assert choose_precision("auto", device, tmp_path / "missing") == torch.float32
    assert choose_precision("bf16", device, tmp_path / "cpuinfo") == torch.bfloat16
    assert choose_precision("fp32", device, tmp_path / "cpuinfo") == torch.float32


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"training.device = 'cuda', but this PyTorch finds no CUDA device"):
        choose_device("cuda")


def test_threads_are_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("dragoman.model.training.hardware.usable_cores", lambda: 3)
    try:
        assert set_threads("auto") == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_nearer_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    limits = Limits(settings(max_steps=100, max_minutes=1.0))
    now_s += 30.0
    assert limits.progress(10) == pytest.approx(30 / 46)  # of the minute 14 s are kept for the end
    assert limits.progress(80) == 0.8
    assert limits.reached(99) is None
    assert limits.reached(100) == "max_steps"
    now_s += 30.0
    assert limits.reached(1) == "max_minutes"
    assert limits.progress(1) == limits.progress(300) == 1.0


def test_steps_alone_decide_where_there_is_no_time_limit() -> None:
    limits = Limits(settings(max_steps=100))
    assert [limits.progress(step) for step in (0, 25, 100)] == [0.0, 0.25, 1.0]


def weights(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((2, 3), float(value)), "b": torch.tensor([value, 1.0])}


def test_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path, max_kept=2)
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.5, 50: 0.5}
    best = [keeper.add(step, weights(float(step)), loss) for step, loss in losses.items()]
    assert len(list(tmp_path.iterdir())) == 10, "nothing goes before it is said"
    keeper.tidy()
    assert best == [True, True, False, False, True]
    assert [(kept.step, kept.validation_loss) for kept in keeper.kept] == [(50, 0.5), (20, 1.0)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-0000020.json",
        "step-0000020.safetensors",
        "step-0000050.json",
        "step-0000050.safetensors",
    ]
    assert json.loads((tmp_path / "step-0000050.json").read_text()) == {"step": 50, "validation_loss": 0.5}
    averaged = average_weights(keeper.kept)
    torch.testing.assert_close(averaged, {"a": torch.full((2, 3), 35.0), "b": torch.tensor([35.0, 1.0])})


def test_an_equal_checkpoint_is_no_improvement(tmp_path: Path) -> None:
    """Or a training where nothing moves any more would never run out of patience."""
    keeper = CheckpointKeeper(tmp_path, max_kept=1)
    assert keeper.add(1, weights(1.0), 0.5)
    assert not keeper.add(2, weights(2.0), 0.5)
    assert [kept.step for kept in keeper.kept] == [1]


def test_a_torn_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step-0000001.safetensors"
    write_weights(path, weights(1.0))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match=r"step-0000001\.safetensors cannot be read"):
        average_weights([Checkpoint(path, 1, 0.5)])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and speaks of glibc")
def test_memory_that_is_kept_can_be_handed_back() -> None:
    """In a process of its own: what is set holds until its end."""
    program = """
import random, torch
from dragoman.model.training.hardware import keep_freed_memory, release_freed_memory

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

keep_freed_memory()
random.seed(0)
before, kept = resident_mib(), []
for _ in range(20):
    large = [torch.ones(random.randint(10_000, 3_000_000)) for _ in range(20)]
    kept.append(torch.ones(2_000))
del large
held = resident_mib() - before
release_freed_memory()
print(held, resident_mib() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    held, left = map(float, done.stdout.split())
    assert held > 100, "freed memory is kept"
    assert left < 30
