"""`max_minutes` holds all that a training does; what is too much for them is cut, and said."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.capitals import capitals, recipe

from dragoman.cli.main import main
from dragoman.model.batching import Batch, Pairs
from dragoman.model.errors import TrainingError
from dragoman.model.recipe import TrainingSettings
from dragoman.model.run import load_run
from dragoman.model.training.distributed import World
from dragoman.model.training.doubts import doubts, unigram_loss
from dragoman.model.training.history import read_history
from dragoman.model.training.limits import Limits
from dragoman.model.training.measure import translate_texts, within_time
from dragoman.model.training.optimizer import learning_rate
from dragoman.model.training.step import TrainingStep
from dragoman.model.training.train import train
from dragoman.model.training.validation import Validation, evenly_spread

pytestmark = pytest.mark.usefixtures("one_core", "no_charts")


class Clock:
    """Time that passes only by what is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)

    def pass_by(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings(**{"max_minutes": 1.0, **changes})


def test_time_for_the_end_is_kept_back_before_anything_is_known(clock: Clock) -> None:
    limits = Limits(settings())
    clock.pass_by(30.0)
    assert limits.reached(1) is None
    assert 0.5 < limits.progress(1) < 1.0
    clock.pass_by(20.0)
    assert limits.reached(1) == "max_minutes"
    assert limits.progress(1) == 1.0


def test_what_an_evaluation_took_is_kept_back_afterwards(clock: Clock) -> None:
    limits = Limits(settings())
    limits.add_evaluation(1.0, final_s=2.0)
    clock.pass_by(54.9)  # 1 + 2 + 2 to write the run
    assert limits.reached(1) is None
    clock.pass_by(0.1)
    assert limits.reached(1) == "max_minutes"
    assert limits.end_s == clock.now_s + 3.0


def test_evaluations_take_a_share_of_the_time_at_most(clock: Clock) -> None:
    limits = Limits(settings())
    clock.pass_by(10.0)
    limits.add_evaluation(3.0, final_s=0.0)
    assert not limits.has_room_for_evaluation
    clock.pass_by(2.0)
    assert limits.has_room_for_evaluation


def test_without_minutes_nothing_is_cut(clock: Clock) -> None:
    limits = Limits(settings(max_minutes=None, max_steps=10))
    limits.add_evaluation(1e6, 1e6)
    assert limits.has_room_for_evaluation
    assert limits.end_s == limits.share(0.01) == math.inf
    assert limits.progress(5) == 0.5


@pytest.mark.parametrize(("max_steps", "max_minutes"), [(60, None), (None, 0.02)])
def test_a_short_training_leaves_its_warm_up(max_steps: int | None, max_minutes: float | None) -> None:
    chosen = settings(max_steps=max_steps, max_minutes=max_minutes, warmup_steps=1000, schedule="constant")
    rates = [learning_rate(chosen, step, step / 60) for step in range(60)]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(chosen.max_learning_rate / 1000)
    assert rates[6:] == [chosen.max_learning_rate] * 54


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_each_beginning_is_spread_over_all(count: int) -> None:
    order = evenly_spread(count)
    assert sorted(order) == list(range(count))
    for size in (3, 7, 31):
        gaps = [after - before for before, after in itertools.pairwise(sorted(order[:size]))]
        assert count < 100 or max(gaps) <= 100 / size * 2


def test_all_items_are_computed_where_there_is_time(clock: Clock) -> None:
    def compute(items: Sequence[int]) -> list[int]:
        clock.pass_by(0.01)
        return [-item for item in items]

    for end_s in (math.inf, clock.now_s + 60.0):
        items, results = within_time(range(1000), compute, end_s)
        assert dict(zip(items, results, strict=True)) == {item: -item for item in range(1000)}


@pytest.mark.parametrize("each_s", [0.001, 0.1, 1.0, 100.0])
def test_fewer_items_are_computed_where_there_is_little_time(clock: Clock, each_s: float) -> None:
    def compute(items: Sequence[int]) -> list[int]:
        clock.pass_by(each_s * len(items))
        return list(items)

    start_s = clock.now_s
    items, _ = within_time(range(100_000), compute, start_s + 60.0)
    assert len(set(items)) == len(items) >= 8
    assert clock.now_s - start_s <= max(60.0, 8 * each_s), "the first chunk is computed in any case"
    assert len(items) >= min(100_000, 0.7 * 60.0 / each_s) or len(items) == 8


def test_validation_reads_what_there_is_time_for_and_the_same_again(clock: Clock) -> None:
    examples = Pairs([[4] * 100] * 1000, [[4] * 100] * 1000)
    validation = Validation(examples, 4096)
    model = torch.nn.Linear(1, 1)
    end_s = clock.now_s + 5.0

    def batch_loss(batch: Batch) -> torch.Tensor:
        clock.pass_by(1.0)
        return torch.tensor(2.0 * batch.num_labels)

    def loss() -> float:
        return validation.loss(
            model,  # type: ignore[arg-type]
            batch_loss,
            world=World(),
            part=lambda some, rows: some.batch(rows),
            is_over=lambda: clock.now_s >= end_s,
        )

    assert loss() == 2.0
    assert validation.num_batches == 5
    assert 0 < validation.share < 0.5
    loss()
    assert validation.num_batches == 5
    assert len(list(validation.batches())) == 5
    assert Validation(examples, 4096).share == 1.0


def test_minutes_that_end_before_the_first_step_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = recipe(capitals(tmp_path), max_minutes=1e-12)
    with pytest.raises(TrainingError, match=r"^training\.max_minutes = 1e-12 end before the first step"):
        train(chosen, tmp_path / "run", show_progress=False)
    assert (
        main(
            ["train", "dates", "--out", str(tmp_path / "dates"), *TINY, "--set", "training.max_minutes=1e-12"]
        )
        == 1
    )
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: training.max_minutes = 1e-12 end before")
    )


TINY = [
    f"--set={change}" for change in ("corpus.num_train=60", "corpus.num_validation=5", "corpus.num_test=5")
]


def test_a_training_ends_within_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where validation and the test would each take longer than all of them."""
    clock = Clock(monkeypatch)
    slow(monkeypatch, clock, step_s=0.5, batch_s=10.0, pair_s=1.0)
    corpus = capitals(tmp_path)
    corpus["corpus"]["test_share"] = 0.2
    chosen = recipe(
        corpus,
        max_minutes=3.0,
        max_steps=None,
        evaluation_interval_steps=5,
        state_interval_s=1e9,
    )
    start_s = clock.now_s
    summary = train(chosen, tmp_path / "run", show_progress=False)
    assert clock.now_s - start_s <= 180.0
    assert summary.seconds <= 180.0
    assert summary.outcome.num_steps >= 100, "most of it is training"
    [cut] = summary.cuts
    assert cut.endswith("test examples")
    assert load_run(tmp_path / "run").metrics == summary.metrics
    assert read_history(tmp_path / "run").facts["quality"].startswith(f"measured on {cut}: ")


def slow(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, *, step_s: float, batch_s: float, pair_s: float
) -> None:
    """Let a step, a batch of validation and a translated pair take so long."""

    def after(function: Any, seconds: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            clock.pass_by(seconds(*arguments))
            return result

        return run

    monkeypatch.setattr(TrainingStep, "run", after(TrainingStep.run, lambda *_: step_s))
    monkeypatch.setattr(TrainingStep, "plain_loss", after(TrainingStep.plain_loss, lambda *_: batch_s))
    for module in ("measure", "insight"):
        name = f"dragoman.model.training.{module}.translate_texts"
        monkeypatch.setattr(name, after(translate_texts, lambda _, __, sources, *___: pair_s * len(sources)))


def test_frequencies_alone_have_their_loss() -> None:
    """By hand: 4 three times, 5 once and the end twice of a vocabulary of 8, each counted once more."""
    train_split = Pairs([[4], [4]], [[4, 4], [4, 5]])
    validation = Pairs([[4]], [[5]])
    loss = unigram_loss(train_split, [validation.batch(np.arange(1))], 8, batch_tokens=64, seed=1)
    assert loss == pytest.approx(-(math.log(2 / 14) + math.log(3 / 14)) / 2)


@pytest.mark.parametrize(
    ("loss", "num_steps", "is_from_scratch", "said"),
    [
        (
            7.0,
            500,
            True,
            "the model has learned nothing: its validation loss, 7.00 nats a token, is not below 6.91",
        ),
        (
            6.0,
            500,
            True,
            "the model has hardly learned anything: its validation loss, 6.00 nats a token, is not",
        ),
        (3.0, 12, True, "12 steps are too few to learn much; give it more training.max_minutes"),
        (3.0, 12, False, ""),
        (3.0, 500, True, ""),
    ],
)
def test_a_training_that_cannot_have_learned_is_doubted(
    loss: float, num_steps: int, is_from_scratch: bool, said: str
) -> None:
    found = doubts(
        num_steps=num_steps, loss=loss, unigram=5.5, vocabulary_size=1000, is_from_scratch=is_from_scratch
    )
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_doubt_is_said_at_the_end_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train(recipe(capitals(tmp_path), max_steps=7), tmp_path / "run")
    assert "7 steps are too few" in summary.warning
    assert f"warning: {summary.warning}" in capsys.readouterr().err.splitlines()
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<p class="card warning" role="alert"><b>Warning:</b> ' in page
    assert "7 steps are too few" in page
