"""How long the input has waited that waits longest: of one client, of all versions and of all fronts."""

import contextlib
import sys
import time
from collections.abc import Callable

import pytest
from prometheus_client import generate_latest
from tests.unit.test_server_engine_client import GREEDY, make
from tests.unit.test_server_metrics import Occupied, value

from dragoman.server.operations.metrics import Metrics
from dragoman.server.operations.shared_values import ValueMemory, ValueWriter, counting_in


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock on, in place of waiting."""
    late_s = 0.0
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + late_s)

    def sleep(seconds: float) -> None:
        nonlocal late_s
        late_s += seconds

    return sleep


async def test_it_is_of_the_first_that_has_not_started(sleep: Callable[[float], None]) -> None:
    client, [lane], _ = make()
    assert client.oldest_waiting_s() == 0.0
    first = client.submit([1], GREEDY)
    sleep(100)
    second, third = client.submit([2], GREEDY), client.submit([3], GREEDY)
    sleep(10)
    assert client.oldest_waiting_s() == pytest.approx(110, abs=5)
    lane.start(first)
    assert client.oldest_waiting_s() == pytest.approx(10, abs=5), "one that runs does not wait"
    client.cancel(second)
    assert client.oldest_waiting_s() == pytest.approx(10, abs=5)
    client.cancel(third)
    assert client.oldest_waiting_s() == 0.0, "nobody waits for what was cancelled"
    client.close()


def test_of_several_versions_it_is_the_longest() -> None:
    metrics = Metrics(1.0)
    assert value(metrics, "oldest_waiting_seconds", model="toy") is None
    metrics.watch("toy", Occupied(oldest_s=2.0))
    metrics.watch("toy", Occupied(oldest_s=3.0))
    assert value(metrics, "oldest_waiting_seconds", model="toy") == 3.0


@pytest.mark.skipif(sys.platform != "linux", reason="several fronts need memfd_create")
@pytest.mark.parametrize(("own_s", "other_s"), [(2.0, 5.0), (5.0, 2.0)])
def test_of_several_fronts_it_is_the_longest(own_s: float, other_s: float) -> None:
    metrics, memory = Metrics(1.0), ValueMemory("front-1")
    metrics.watch("toy", Occupied(oldest_s=own_s))
    metrics.page.add(memory)
    with contextlib.closing(ValueWriter(memory.fd)) as writer:
        with counting_in(writer):
            other = Metrics(1.0)
        other.watch("toy", Occupied(oldest_s=other_s))
        other.publish(writer)
        assert 'dragoman_oldest_waiting_seconds{model="toy"} 5.0' in generate_latest(metrics.page).decode()
    metrics.page.retire(memory)
