"""A training that is stopped, in whatever way, goes on as if it had never been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.capitals import RESUME, KilledError, capitals, recipe, stop_after, undisturbed, weights

from dragoman.common.errors import OperationError
from dragoman.common.files import atomic_write
from dragoman.model.errors import RunError, TrainingError, TrainingStopped
from dragoman.model.training import loop, validation
from dragoman.model.training.checkpoints import CheckpointKeeper
from dragoman.model.training.state import Progress, State, StateStore
from dragoman.model.training.step import TrainingStep
from dragoman.model.training.train import Beginning, train

pytestmark = pytest.mark.usefixtures("one_core", "no_charts")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return capitals(tmp_path)


def command(recipe_file: Path, out: Path, *options: str) -> list[str]:
    start = [sys.executable, "-m", "dragoman", "train", str(recipe_file), "--out", str(out)]
    return [*start, *options]


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"}


def toml(values: dict[str, Any], path: Path) -> Path:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for section, content in values.items():
        if isinstance(content, dict):
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in content.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_killed_at_any_step_the_weights_are_the_same_to_the_bit(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Random places of death, between any two writes of the loop, until the training has come to its end."""
    chosen = recipe(settings, optimizer=optimizer)
    rng = random.Random(optimizer)
    places = [
        (loop, "learning_rate"),
        (validation, "sum_losses"),
        (CheckpointKeeper, "add"),
        (CheckpointKeeper, "tidy"),
        (StateStore, "save"),
        (TrainingStep, "run"),
    ]
    out = tmp_path / "killed"
    num_deaths, done = 0, False
    while not done:
        place, name = rng.choice(places)
        countdown = rng.randint(1, 9)
        original = getattr(place, name)

        def dies(*arguments: Any, _original: Any = original, **named: Any) -> Any:
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                raise KilledError
            return _original(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, dies)
            try:
                train(chosen, out, beginning=RESUME if num_deaths else None, show_progress=False)
                done = True
            except KilledError:
                num_deaths += 1
    assert num_deaths >= 5
    assert weights(out) == undisturbed(optimizer)
    figures = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in figures if "loss" in line]
    assert steps == sorted(set(steps)), "each step is recorded once"


def test_a_process_killed_at_random_moments_loses_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    """The real thing: SIGKILL to the command, while it reads, learns, validates or writes."""
    longer = {**settings, "training": {**settings["training"], "max_steps": 150}}
    train(recipe(longer), tmp_path / "whole", show_progress=False)
    chosen = toml(longer, tmp_path / "r.toml")
    rng = random.Random(7)
    out, num_killed = tmp_path / "killed", 0
    for _ in range(3):
        options = ["--resume"] if (out / "recipe.json").exists() else []
        with subprocess.Popen(
            command(chosen, out, *options), env=environment(), stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:  # imports take seconds, in which a kill would find nothing to break
                if "to learn from" in line:
                    break
            time.sleep(rng.uniform(0.0, 1.0))
            process.kill()
            num_killed += process.wait() == -signal.SIGKILL
    if not (out / "run.json").exists():
        subprocess.run(command(chosen, out, "--resume"), env=environment(), check=True, capture_output=True)
    assert num_killed >= 2
    assert weights(out) == weights(tmp_path / "whole")


def test_sigterm_saves_and_leaves_with_0(settings: dict[str, Any], tmp_path: Path) -> None:
    endless = {**settings["training"], "max_steps": 10_000_000, "state_interval_s": 1e6}
    chosen = toml({**settings, "training": endless}, tmp_path / "r.toml")
    out = tmp_path / "run"
    with subprocess.Popen(
        command(chosen, out), env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step "):
                break
        process.terminate()
        errors = process.communicate(timeout=10)[1]
    assert process.returncode == 0, errors
    assert "all saved; the same command with --resume goes on" in errors
    found = StateStore(out / "state").load()
    assert found is not None
    assert found[0].progress.step >= 7
    assert not (out / "run.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_resumes_to_the_same_weights(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    chosen = recipe(settings, state_interval_s=1e6)
    original, num_steps = TrainingStep.run, 0

    def signalled(*arguments: Any, **named: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 25:
            signal.raise_signal(number)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "run", signalled)
        with pytest.raises(TrainingStopped) as stopped:
            train(chosen, tmp_path / "run", show_progress=False)
    assert stopped.value.step == 25
    assert stopped.value.interrupted == (number == signal.SIGINT)
    train(chosen, tmp_path / "run", beginning=RESUME, show_progress=False)
    assert weights(tmp_path / "run") == undisturbed()


def test_a_signal_while_validating_ends_that_at_once(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(settings, state_interval_s=1e6)

    def signalled(*_: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("validation went on")

    with monkeypatch.context() as patch, pytest.raises(TrainingStopped) as stopped:
        patch.setattr(validation, "sum_losses", signalled)
        train(chosen, tmp_path / "run", show_progress=False)
    assert stopped.value.step == 7
    train(chosen, tmp_path / "run", beginning=RESUME, show_progress=False)
    assert weights(tmp_path / "run") == undisturbed()


def test_a_torn_state_is_passed_over(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen, out = recipe(settings), tmp_path / "run"
    stop_after(monkeypatch, chosen, out, num_steps=15)
    _older, newer = sorted((out / "state").iterdir())
    newer.write_bytes(newer.read_bytes()[:-1000])
    train(chosen, out, beginning=RESUME)
    said = capsys.readouterr().err
    assert f"passed over {newer.name}: it is damaged" in said
    assert "resumed at step 14" in said
    assert weights(out) == undisturbed()

    stop_after(monkeypatch, chosen, tmp_path / "other", num_steps=15)
    for path in (tmp_path / "other/state").iterdir():
        path.write_bytes(b"")
    with pytest.raises(RunError, match=r"every training state in .* is damaged"):
        train(chosen, tmp_path / "other", beginning=RESUME, show_progress=False)


def test_a_full_disk_leaves_the_last_state(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, out = recipe(settings), tmp_path / "run"

    def fills_up(path: Path, content: bytes | str) -> None:
        if "step-000000020" in path.name:  # the first half of it fits
            (path.parent / f".{path.name}.partial").write_bytes(bytes(content[: len(content) // 2]))  # type: ignore[arg-type]
            raise OperationError(f"cannot write {path}: No space left on device")
        atomic_write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("dragoman.model.training.state.atomic_write", fills_up)
        with pytest.raises(OperationError, match="No space left on device"):
            train(chosen, out, show_progress=False)
    found = StateStore(out / "state").load()
    assert found is not None
    assert found[0].progress.step == 19
    train(chosen, out, beginning=RESUME, show_progress=False)
    assert weights(out) == undisturbed()


def test_after_a_loss_that_is_not_finite_training_goes_on_from_the_last_good_state(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, out = recipe(settings, evaluation_interval_steps=10), tmp_path / "run"
    original, done = TrainingStep.run, 0

    def breaks(step: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal done
        done += 1
        loss, norm = original(step, *arguments, **named)
        if done == 23:
            with torch.no_grad():
                next(step._model.parameters()).fill_(float("nan"))
            norm = torch.tensor(float("nan"))
        return loss, norm

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "run", breaks)
        with pytest.raises(TrainingError, match=r"the gradient's norm is nan at step 23: lower .* --resume"):
            train(chosen, out, show_progress=False)
    found = StateStore(out / "state").load()
    assert found is not None
    assert found[0].progress.step == 22
    assert all(torch.isfinite(tensor.float()).all() for tensor in found[0].tensors.values())
    slower = recipe(settings, evaluation_interval_steps=10, max_learning_rate=1e-3)
    summary = train(slower, out, beginning=Beginning(resume=True, accept_changes=True), show_progress=False)
    assert summary.outcome.num_steps == 40


def test_states_are_kept_two_at_a_time(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    assert store.load() is None
    for step in (3, 5, 9):
        store.save(State.of(Progress(step=step), {"model": {"a.b": torch.full((2,), float(step))}}))
    assert [path.name[:14] for path in sorted(tmp_path.iterdir())] == ["step-000000005", "step-000000009"]
    found = store.load()
    assert found is not None
    assert found[0].progress.step == 9
    torch.testing.assert_close(found[0].group("model"), {"a.b": torch.full((2,), 9.0)})
    assert load_file(max(tmp_path.iterdir())).keys() == {"model.a.b"}
