"""What several of these tests ask for."""

import pytest


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings leave the number of threads as it is, and say one."""
    monkeypatch.setattr("dragoman.model.training.train.set_threads", lambda *_: 1)


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of trainings have no curves, which take as long as the training of a small model."""
    monkeypatch.setattr("dragoman.model.training.report.draw_charts", lambda _: [])
