"""Which calls are taken, by clocks and counts that the test moves."""

import math

from server.admission import MAX_DELAY_S, MIN_BACKLOG, Backlog, Load

SLOTS = 8


class Arrivals:
    """gRPC's count of calls."""

    def __init__(self) -> None:
        self.num_started: int | None = 0

    def __call__(self) -> int | None:
        return self.num_started


def test_calls_that_are_taken_up_as_they_come_have_not_waited() -> None:
    arrivals = Arrivals()
    backlog = Backlog(arrivals)
    for call in range(1, 1000):
        arrivals.num_started = call
        assert backlog.delay(call, 0.001, call * 0.02, is_alone=True) is None


def test_a_call_that_spent_over_a_third_of_its_time_before_it_was_taken_up_is_refused() -> None:
    arrivals = Arrivals()
    backlog = Backlog(arrivals)
    for tick in range(100):  # 1,000 calls a second come, 500 are taken up
        arrivals.num_started = 1000 * (tick + 1) // 50
        backlog.delay(500 * (tick + 1) // 50, 60.0, (tick + 1) / 50, is_alone=False)
    # At 2 s call number 1,000 is taken up, which came at 1 s.
    assert backlog.delay(1000, 2.2, 2.0, is_alone=False) is None
    delay_s = backlog.delay(1000, 1.8, 2.0, is_alone=False)
    assert delay_s is not None
    assert 0.9 < delay_s < 1.1
    assert backlog.delay(1000, math.inf, 2.0, is_alone=False) is None, "no deadline is no hurry"


def test_a_few_calls_that_came_together_are_no_backlog() -> None:
    arrivals = Arrivals()
    backlog = Backlog(arrivals)
    arrivals.num_started = MIN_BACKLOG
    for call in range(1, MIN_BACKLOG + 1):
        assert backlog.delay(call, 0.001, call * 0.1, is_alone=False) is None


def test_calls_that_grpc_dropped_are_not_waited_for() -> None:
    arrivals = Arrivals()
    backlog = Backlog(arrivals)
    arrivals.num_started = 500  # of which 499 were dropped
    assert backlog.delay(1, 1.0, 0.0, is_alone=True) is None
    arrivals.num_started = 501
    assert backlog.delay(2, 1.0, 60.0, is_alone=False) is None


def test_a_count_that_has_ended_refuses_nothing() -> None:
    arrivals = Arrivals()
    arrivals.num_started = None
    assert Backlog(arrivals).delay(1, 0.001, 0.0, is_alone=False) is None


def serve_at_full_load(load: Load, *, num_calls: int, rate: float, seconds: float) -> float:
    """`num_calls` are in the server all the time, and one is answered every 1 / rate seconds; returns the time."""
    for _ in range(num_calls):
        load.begin(0.0)
    now_s = 0.0
    while now_s < seconds:
        now_s += 1 / rate
        load.end(now_s, answered=True)
        load.begin(now_s)
    return now_s


def test_a_model_that_has_answered_nothing_yet_takes_calls() -> None:
    load = Load(SLOTS)
    for _ in range(100):
        load.begin(0.0)
    assert load.delay(0.001, 0.0) is None


def test_a_burst_after_quiet_hours_is_taken() -> None:
    load = Load(SLOTS)
    for second in range(100):
        load.begin(second)
        load.end(second + 0.5, answered=True)
    for _ in range(500):
        assert load.delay(1.0, 100.0) is None
        load.begin(100.0)


def test_a_call_that_would_wait_for_more_than_half_its_time_is_refused_with_a_delay() -> None:
    load = Load(SLOTS)
    now_s = serve_at_full_load(load, num_calls=SLOTS + 39, rate=100, seconds=3)  # a new call waits 0.4 s
    assert load.delay(1.0, now_s) is None
    for _ in range(20):
        load.begin(now_s)
    delay_s = load.delay(1.0, now_s)
    assert delay_s is not None
    assert 0.5 < delay_s < 0.7
    assert load.delay(10.0, now_s) is None, "there is time enough"
    assert load.delay(math.inf, now_s) is None, "no deadline is no hurry"


def test_a_model_that_answers_nothing_any_more_takes_calls_while_it_has_free_slots() -> None:
    load = Load(SLOTS)
    now_s = 60.0 + serve_at_full_load(load, num_calls=60, rate=100, seconds=3)
    assert load.delay(1.0, now_s) == MAX_DELAY_S
    for _ in range(60 - SLOTS + 1):
        load.end(now_s, answered=False)
    assert load.delay(1.0, now_s) is None
