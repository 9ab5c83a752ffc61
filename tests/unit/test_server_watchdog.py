"""A lane has as long as its slowest graph needs; a thread that stands still is told once, one that waits is not."""

import threading

import pytest
from tests.unit.damaged_bundles import FIXTURES, GENERATION, TRANSLATION

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.engine.thread_watch import Signs, ThreadWatch
from dragoman.server.engine.trial import check_answers
from dragoman.server.engine.watchdog import NUM_LOOKS, RUNS_A_SIGN, patience_s
from dragoman.server.execution.backend import Backend

PATIENCE_S = 20.0


def test_slow_graphs_get_more_time_than_is_set() -> None:
    assert patience_s(20.0, []) == 20.0
    assert patience_s(20.0, [0.1, 1.9]) == 20.0
    assert patience_s(20.0, [0.1, 7.0]) == 7.0 * RUNS_A_SIGN


@pytest.mark.parametrize("fixture", [TRANSLATION, GENERATION])
def test_the_slowest_run_is_measured_when_graphs_are_tried(fixture: str) -> None:
    backend = Backend.load(Bundle.read(FIXTURES / fixture), provider="cpu", num_threads=1)
    assert backend.slowest_run_s == 0.0
    check_answers(backend)
    assert 0.0 < backend.slowest_run_s < 10.0
    assert backend.with_prefix_cache(1 << 20).slowest_run_s == backend.slowest_run_s


class Looks:
    """Of a watch: what it found, and how often it has looked at all lanes."""

    def __init__(self, *signs: Signs) -> None:
        self.stuck: list[int] = []
        self._looked = threading.Condition()
        self._num_looks = 0
        self.watch = ThreadWatch(signs, self._patience, self.stuck.append)

    def _patience(self) -> float:
        with self._looked:
            self._num_looks += 1
            self._looked.notify_all()
        return NUM_LOOKS * 0.001

    def wait(self, num_looks: int) -> None:
        with self._looked:
            last = self._num_looks + num_looks
            assert self._looked.wait_for(lambda: self._num_looks >= last, PATIENCE_S)


def test_a_thread_that_stands_still_is_told_once() -> None:
    stuck, idle, busy = Signs(), Signs(), Signs()
    stuck.is_idle = busy.is_idle = False
    looks = Looks(idle, stuck, busy)
    looks.watch.start()
    for _ in range(3 * NUM_LOOKS):
        busy.count += 1
        looks.wait(2)
    looks.watch.close()
    assert looks.stuck == [1]


def test_the_setting_has_a_sane_default_and_least_value() -> None:
    assert EngineSettings().watchdog_s == 20.0
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        EngineSettings(watchdog_s=0.5)
