"""Threads spin while they have the cores for themselves, and sleep while other processes want them."""

import os
import threading
from pathlib import Path

import pytest
import torch

from dragoman.common.cpu import busy_core_seconds
from dragoman.model.training import waiting
from dragoman.model.training.waiting import Contention, IdleTeams, considerate_threads

STAT = """cpu  300 0 300 800 0 0 0 0 0 0
cpu0 100 10 100 400 7 1 2 5 0 0
cpu1 200 0 200 400 7 0 0 0 0 0
cpu11 900 0 0 0 0 0 0 0 0 0
intr 12345
"""


def readings(num_threads: int, num_cores: int, others: list[float], own: float = 1.0) -> list[bool]:
    """What is found when others, second for second, take so many cores."""
    contention = Contention(num_threads, num_cores)
    contention.read(0.0, 100.0, 7.0)
    busy_s, own_s, found = 100.0, 7.0, []
    for second, cores in enumerate(others, start=1):
        busy_s, own_s = busy_s + cores + own, own_s + own
        found.append(contention.read(float(second), busy_s, own_s))
    return found


def test_a_busy_process_beside_as_many_threads_as_cores_is_contention() -> None:
    assert readings(2, 2, [1.0, 1.0, 1.0]) == [False, True, True]
    assert readings(2, 2, [0.1, 0.1, 0.1]) == [False] * 3, "a machine is never quite idle"
    assert readings(2, 2, [1.0, 0.0, 1.0, 0.0]) == [False] * 4, "a command that starts is none that stays"


def test_a_core_that_is_free_for_others_is_none() -> None:
    assert readings(2, 4, [1.9, 1.9]) == [False, False]
    assert readings(2, 4, [2.5, 2.5]) == [False, True]


def test_it_ends_after_some_quiet() -> None:
    others = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert readings(2, 2, others) == [False] + [True] * 10 + [False]


def test_the_work_of_some_cores(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text(STAT)
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_core_seconds({0}, tmp_path / "stat") == 213 / ticks
    assert busy_core_seconds({0, 1}, tmp_path / "stat") == 613 / ticks
    assert busy_core_seconds({5}, tmp_path / "stat") is None
    assert busy_core_seconds({0}, tmp_path / "missing") is None


def num_tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
def test_idle_teams_are_threads_of_openmp_and_leave_nothing() -> None:
    before_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(1 << 20).add_(1.0)  # this thread's own team
        before = num_tasks()
        teams = IdleTeams(num_threads=2, num_cores=3)
        with teams:
            for _ in teams._leaders:
                assert teams.started.acquire(timeout=30)
            assert num_tasks() >= before + 4, "two leaders, each with a thread in its team"
        assert not any(leader.is_alive() for leader in teams._leaders)
    finally:
        torch.set_num_threads(before_threads)


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "contention"]


def test_a_watcher_lasts_as_long_as_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    with considerate_threads(2):
        assert len(watchers()) == 1
    assert watchers() == []
    with considerate_threads(1):
        assert watchers() == []


def test_what_the_user_says_about_waiting_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with considerate_threads(2):
        assert watchers() == []


def test_contention_brings_idle_teams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher, at a machine on which others take a core more with each look."""
    monkeypatch.setattr(waiting, "_INTERVAL_S", 0.001)
    entered = threading.Event()
    left = threading.Event()

    class Teams:
        def __init__(self, num_threads: int, num_cores: int) -> None:
            pass

        def __enter__(self) -> None:
            entered.set()

        def __exit__(self, *_: object) -> None:
            left.set()

    monkeypatch.setattr(waiting, "IdleTeams", Teams)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    looks = iter(range(10**9))
    monkeypatch.setattr(waiting, "busy_core_seconds", lambda *_: 1e6 * next(looks))
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    with considerate_threads(2):
        assert entered.wait(timeout=30)
    assert left.is_set()
