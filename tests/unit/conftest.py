"""What several of these tests ask for."""

import pytest


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings leave the number of threads as it is, and say one."""
    monkeypatch.setattr("dragoman.model.training.train.set_threads", lambda *_: 1)
