"""Which calls are taken, by a clock that the test moves."""

import math

from dragoman.server.engine.rate import MAX_DELAY_S
from dragoman.server.priority import Priority
from dragoman.server.requests.admission import STALE_S, Load, Size

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


def test_a_call_that_would_take_more_than_its_share_of_its_time_is_refused_with_a_delay() -> None:
    load = Load(SLOTS)
    # A new call waits 0.4 s and is computed for 0.08 s, as eight are computed at a time and a hundred a second.
    now_s = serve_at_full_load(load, num_calls=SLOTS + 39, rate=100, seconds=3)
    assert load.delay(1.0, now_s) is None
    for _ in range(20):
        load.begin(now_s)
    delay_s = load.delay(1.0, now_s)
    assert delay_s is not None
    assert 0.5 < delay_s < 0.7
    assert load.delay(10.0, now_s) is None, "there is time enough"
    assert load.delay(math.inf, now_s) is None, "no deadline is no hurry"


def test_a_model_that_answers_nothing_any_more_takes_calls_while_half_of_its_slots_are_free() -> None:
    load = Load(SLOTS)
    now_s = 60.0 + serve_at_full_load(load, num_calls=60, rate=100, seconds=3)
    assert load.delay(1.0, now_s) == MAX_DELAY_S
    for _ in range(60 - SLOTS // 2 + 1):
        load.end(now_s, answered=False)
    assert load.delay(1.0, now_s) is None


def test_a_call_of_many_rows_shows_the_rate_again_when_a_stall_has_spoilt_it() -> None:
    load = Load(SLOTS)
    now_s = serve_at_full_load(load, num_calls=SLOTS, rate=100, seconds=3)
    for _ in range(SLOTS):
        load.end(now_s + 6.0, answered=False)  # the lanes died, and nothing was answered for long
    many = Size(SLOTS)
    assert load.delay(30.0, now_s + 6.1, many) is not None, "nothing says yet that the stall is over"
    now_s += 6.0 + STALE_S
    assert load.delay(30.0, now_s, many) is None, "a call of fewer rows may never come"
    load.begin(now_s, many)
    assert load.delay(30.0, now_s, many) is not None, "one is enough to show the rate"
    load.end(now_s + 0.1, answered=True, size=many)
    assert load.delay(30.0, now_s + 0.1, many) is None


def test_a_free_slot_is_of_no_use_to_a_call_whose_time_is_too_short_to_be_computed_beside_the_others() -> (
    None
):
    load = Load(SLOTS)
    now_s = serve_at_full_load(load, num_calls=SLOTS, rate=10, seconds=3)  # each is computed for 0.8 s
    load.end(now_s, answered=False)
    assert load.delay(2.0, now_s) is None
    assert load.delay(1.0, now_s) is not None


def full(load: Load, sizes: dict[Priority, Size], *, rate: float = 100.0) -> float:
    """Fill a model with calls of these classes, and have rows answered for three seconds; returns the time."""
    now_s = serve_at_full_load(load, num_calls=SLOTS, rate=rate, seconds=3)
    for priority, size in sizes.items():
        load.begin(now_s, size, priority)
    return now_s


def test_a_call_counts_by_its_sequences() -> None:
    load = Load(SLOTS)
    now_s = full(load, {Priority.NORMAL: Size(40)})
    assert load.delay(1.0, now_s) is None, "0.41 s of 1 s, and 0.08 s"
    assert load.delay(1.0, now_s, Size(20)) is not None, "its last one starts after 0.6 s"
    load.end(now_s, answered=False, size=Size(40))
    assert load.delay(1.0, now_s, Size(20)) is None


def test_long_inputs_that_wait_count_by_their_tokens() -> None:
    load = Load(SLOTS)
    for _ in range(SLOTS + 20):
        load.begin(0.0, Size(1, 10))
    for step in range(1, 301):  # a hundred sequences of ten tokens a second
        load.end(step / 100, answered=True, size=Size(1, 10))
        load.begin(step / 100, Size(1, 10))
    assert load.delay(1.0, 3.0, Size(1, 10)) is None
    for _ in range(10):
        load.begin(3.0, Size(1, 100))  # a thousand tokens: a second
    assert load.delay(1.0, 3.0, Size(1, 10)) is not None
    assert load.delay(10.0, 3.0, Size(1, 10)) is None


def test_what_waits_of_lower_priority_counts_as_far_as_it_is_served_first() -> None:
    load = Load(SLOTS, (16, 4, 1))
    now_s = full(load, {Priority.LOW: Size(200)})
    assert load.delay(1.0, now_s, priority=Priority.LOW) is not None
    assert load.delay(1.0, now_s, priority=Priority.NORMAL) is None
    assert load.delay(1.0, now_s, priority=Priority.HIGH) is None
    load.begin(now_s, Size(100), Priority.HIGH)
    assert load.delay(1.0, now_s, priority=Priority.HIGH) is not None
    # Sixteen rows of high priority, four of normal and one of low are served in turn.
    assert load.delay(2 * 21 / 100, now_s, priority=Priority.LOW) is not None


def test_a_class_is_not_refused_for_another_ones_flood_beyond_its_share() -> None:
    load = Load(SLOTS, (16, 4, 1))
    now_s = full(load, {Priority.HIGH: Size(10_000)})
    assert load.delay(1.0, now_s, priority=Priority.HIGH) is not None
    assert load.delay(1.0, now_s, priority=Priority.NORMAL) is None, "one row after five: 0.05 s"
    assert load.delay(1.0, now_s, Size(20), Priority.NORMAL) is not None, "twenty after a hundred: 1 s"


def test_a_slow_models_rate_is_told_by_a_whole_turn_of_its_slots() -> None:
    load, now_s = Load(SLOTS), 0.0
    for _ in range(SLOTS + 4):
        load.begin(now_s)
    for _ in range(30):  # two answers a second, which come in pairs
        now_s += 1.0
        # Five rows wait for 2.5 s, and eight are computed for 4 s: 6.5 s are 0.6 of 10.8 s.
        assert load.delay(16.0, now_s) is None, "just before a pair"
        for _ in range(2):
            load.end(now_s, answered=True)
            load.begin(now_s)
        assert load.delay(16.0, now_s) is None, "just after a pair"
        assert now_s <= SLOTS or load.delay(9.0, now_s) is not None
