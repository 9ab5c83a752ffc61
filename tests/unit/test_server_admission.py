"""Which calls are taken, by a clock that the test moves."""

import math

from dragoman.server.requests.admission import MAX_DELAY_S, Load

SLOTS = 8


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


def test_the_first_turn_of_a_full_model_says_nothing_of_its_rate() -> None:
    load = Load(SLOTS)
    for _ in range(SLOTS):
        load.begin(0.0)
    for _ in range(100):  # a fresh server takes up a burst; nobody had the time to be answered
        assert load.delay(20.0, 0.06) is None
        load.begin(0.06)
    load.end(0.07, answered=True)
    assert load.delay(5.0, 0.07) is None, "one answer is no rate"
    assert load.delay(0.5, 0.5) is not None, "half a second for one of thirteen turns is too slow in any case"


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
