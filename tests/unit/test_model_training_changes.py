"""What may be resumed, with which changes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from tests.unit.capitals import RESUME, capitals, recipe, stop_after, weights

from dragoman.common.errors import UsageError
from dragoman.model.run import load_run
from dragoman.model.training.resume import changed_settings, resume_state
from dragoman.model.training.train import Beginning, train

pytestmark = pytest.mark.usefixtures("one_core", "no_charts")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return capitals(tmp_path)


def test_a_changed_recipe_is_named_and_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    stop_after(monkeypatch, recipe(settings), out, num_steps=10)
    other = recipe(settings, max_learning_rate=1e-3, max_steps=50)
    with pytest.raises(UsageError) as refused:
        train(other, out, beginning=RESUME, show_progress=False)
    message = str(refused.value)
    assert "training.max_learning_rate: 0.005 -> 0.001" in message
    assert "training.max_steps: 40 -> 50" in message
    assert "\n" not in message
    train(other, out, beginning=Beginning(resume=True, accept_changes=True), show_progress=False)
    run = load_run(out)
    assert run.step == 50
    assert run.recipe == other


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        ("model", {"width": 32, "dropout": 0.3}, "model.width: 16 -> 32: this cannot change"),
        ("tokenizer", {"vocabulary_size": 90}, "tokenizer.vocabulary_size: 60 -> 90: this cannot change"),
        ("training", {"optimizer": "adamw"}, 'training.optimizer: "muon" -> "adamw": this cannot change'),
    ],
)
def test_what_a_state_depends_on_cannot_change(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: str,
    changes: dict[str, Any],
    named: str,
) -> None:
    out = tmp_path / "run"
    begun = recipe(settings, optimizer="muon")
    stop_after(monkeypatch, begun, out, num_steps=3)
    before = (out / "recipe.json").read_bytes()
    other = begun.model_copy(update={section: getattr(begun, section).model_copy(update=changes)})
    with pytest.raises(UsageError) as refused:
        train(other, out, beginning=Beginning(resume=True, accept_changes=True), show_progress=False)
    assert str(refused.value).startswith(named)
    assert (out / "recipe.json").read_bytes() == before, "the run is as it was"


def test_an_unfinished_run_is_not_thrown_away(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    stop_after(monkeypatch, recipe(settings), out, num_steps=10)
    with pytest.raises(
        UsageError, match=r"a run already: unfinished at step 10; give --resume .* or --restart"
    ):
        train(recipe(settings), out, show_progress=False)
    train(recipe(settings, max_steps=3), out, beginning=Beginning(restart=True), show_progress=False)
    assert load_run(out).step == 3


def test_there_must_be_something_to_resume(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run to resume in"):
        train(recipe(settings), tmp_path / "none", beginning=RESUME, show_progress=False)
    train(recipe(settings, max_steps=2), tmp_path / "run", show_progress=False)
    with pytest.raises(UsageError, match="is finished, there is nothing to resume"):
        train(recipe(settings, max_steps=2), tmp_path / "run", beginning=RESUME, show_progress=False)


def test_a_finished_run_can_be_trained_longer(settings: dict[str, Any], tmp_path: Path) -> None:
    """With a schedule that does not depend on the end it is the run that was longer from the start."""
    for steps in (14, 28):
        longer = recipe(settings, max_steps=steps, schedule="constant")
        beginning = Beginning(resume=steps == 28, accept_changes=steps == 28)
        train(longer, tmp_path / "run", beginning=beginning, show_progress=False)
    train(longer, tmp_path / "whole", show_progress=False)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_corpus_that_changed_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, recipe(settings), tmp_path / "run", num_steps=10)
    lines = (tmp_path / "pairs.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "pairs.tsv").write_text("".join(lines[:-20]))
    with pytest.raises(UsageError, match=r"pairs\.tsv has changed \(2,982 bytes, now 2,774\)"):
        train(recipe(settings), tmp_path / "run", beginning=RESUME, show_progress=False)


def test_validation_is_read_whole_again_where_settings_or_the_corpus_changed(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of batches that an earlier sitting read would be a part of what there is now."""
    stop_after(monkeypatch, recipe(settings), tmp_path / "run", num_steps=10)
    state, _ = resume_state(tmp_path / "run", recipe(settings), accepts_changes=False)
    assert state is not None
    assert state.progress.num_validation_batches == 1
    assert state.on_corpus("another").progress.num_validation_batches is None
    more = recipe(settings, max_validation_examples=3_000)
    changed, _ = resume_state(tmp_path / "run", more, accepts_changes=True)
    assert changed is not None
    assert changed.progress.num_validation_batches is None


def test_each_changed_setting_is_named_once() -> None:
    before = {"seed": 1, "model": {"width": 32, "norm": "pre"}, "gone": True}
    now = {"seed": 1, "model": {"width": 64, "norm": "pre"}, "new": None, "list": [1]}
    assert changed_settings(before, now) == [
        "gone: true -> null",
        "list: null -> [1]",
        "model.width: 32 -> 64",
    ]
