"""Deaths again and again turn readiness off, and at last liveness; what is quiet for a while is ready again."""

import pytest

from dragoman.server.operations.failure_history import (
    MIN_ALIVE,
    MIN_READY,
    WINDOW_ALIVE_S,
    WINDOW_READY_S,
    FailureHistory,
)


def deaths(history: FailureHistory, count: int, *, begin_s: float = 0.0, every_s: float = 0.0) -> float:
    for number in range(count):
        history.add(begin_s + number * every_s)
    return begin_s + (count - 1) * every_s


def test_a_few_deaths_are_nothing() -> None:
    history = FailureHistory()
    now_s = deaths(history, MIN_READY - 1)
    assert history.is_ready(now_s)
    assert history.is_alive(now_s)


def test_many_at_once_turn_readiness_off_until_it_has_been_quiet() -> None:
    history = FailureHistory()
    now_s = deaths(history, MIN_READY, begin_s=100.0)
    assert not history.is_ready(now_s)
    assert history.is_alive(now_s)
    assert not history.is_ready(now_s + WINDOW_READY_S - 0.1)
    assert history.is_ready(now_s + WINDOW_READY_S)


def test_deaths_far_between_never_count_together() -> None:
    history = FailureHistory()
    every_s = WINDOW_ALIVE_S / (MIN_ALIVE - 1)
    now_s = deaths(history, 10 * MIN_ALIVE, every_s=every_s)
    assert history.is_ready(now_s)
    assert history.is_alive(now_s)


def test_again_and_again_turns_liveness_off() -> None:
    history = FailureHistory()
    for begin in range(5):
        now_s = deaths(history, MIN_READY, begin_s=begin * 2 * WINDOW_READY_S)
        assert not history.is_ready(now_s)
        assert history.is_ready(now_s + WINDOW_READY_S)
        assert history.is_alive(now_s) == (begin < 4)
    assert history.is_alive(now_s + WINDOW_ALIVE_S)


@pytest.mark.parametrize("num_lanes", [1, 4, 64])
def test_all_lanes_together_may_die_once(num_lanes: int) -> None:
    history = FailureHistory(num_lanes)
    deaths(history, num_lanes)
    assert history.is_ready(0.0)
    deaths(history, max(num_lanes, MIN_READY - num_lanes))
    assert not history.is_ready(0.0)
