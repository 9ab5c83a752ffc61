"""Progress where there is no terminal: a line now and then."""

import pytest

from dragoman.cli.progress import progress_bar


def test_a_line_once_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with progress_bar() as tell:
        for done in range(121):
            tell("scoring", done * 1000.0, 120_000.0)
            now_s += 1.0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["scoring: 50,000 of 120,000", "scoring: 100,000 of 120,000"]
