"""A process that answers calls has one heap where lanes are processes of their own, and glibc's number where not."""

from collections.abc import Sequence

import pytest

from dragoman.server import serving
from dragoman.server.config import load_settings
from dragoman.server.engine import layout
from dragoman.server.processes.linux import FRONT_ARENAS


@pytest.mark.parametrize(
    ("num_cores", "overrides", "expected"),
    [
        (2, [], [FRONT_ARENAS]),
        (2, ["engine.lanes_run_in=threads"], []),
        (2, ["engine.threads_per_lane=2"], []),
        (2, ["engine.provider=cuda"], []),
        (1, [], []),
        (1, ["engine.lanes_run_in=processes"], [FRONT_ARENAS]),
        (2, ["engine.lanes_run_in=processes", "engine.provider=cuda"], []),  # refused at the start
    ],
)
def test_heaps_are_limited_where_lanes_are_processes(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, overrides: Sequence[str], expected: list[int]
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(layout, "usable_cores", lambda: num_cores)
    monkeypatch.setattr(serving, "limit_arenas", limits.append)
    settings = load_settings(options={"models.directory": "models"}, overrides=overrides)
    serving._limit_heaps(settings.engine)
    assert limits == expected
