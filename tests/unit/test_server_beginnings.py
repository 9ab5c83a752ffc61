"""Prompts that begin the same go to the lane that has computed their beginning, if that has little more to do."""

from dragoman.server.engine.beginnings import BEGINNING_TOKENS, Beginnings
from dragoman.server.engine.dispatcher import Call, Dispatcher, Sequence
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS

NUM_LANES, NUM_SLOTS = 4, 8


def lanes_of(dispatcher: Dispatcher, num_sequences: int, preferred_lane: int) -> list[int]:
    for _ in range(num_sequences):
        dispatcher.submit(Sequence(40, call=Call(), preferred_lane=preferred_lane))
    return [lane for _, lane in dispatcher.dispatch()]


def test_a_beginning_is_a_block_of_the_cache() -> None:
    assert BEGINNING_TOKENS == BLOCK_TOKENS


def test_the_lane_that_last_had_a_beginning_is_known() -> None:
    beginnings = Beginnings()
    prompt = list(range(40))
    assert beginnings.lane_of(prompt) == -1
    beginnings.note(prompt, 2)
    assert beginnings.lane_of([*prompt[:BEGINNING_TOKENS], 99, 100]) == 2
    assert beginnings.lane_of([99, *prompt]) == -1
    beginnings.note(prompt[:BEGINNING_TOKENS], 1)  # too short to be kept
    assert beginnings.lane_of(prompt) == 2


def test_only_so_many_are_remembered() -> None:
    beginnings = Beginnings()
    for number in range(10_000):
        beginnings.note([number] * 40, 1)
    assert beginnings.lane_of([0] * 40) == -1
    assert beginnings.lane_of([9_999] * 40) == 1
    assert len(beginnings._lanes) < 5_000


def test_a_preferred_lane_is_taken() -> None:
    dispatcher = Dispatcher(NUM_LANES, NUM_SLOTS, 100, rows_before_spread=1)
    assert lanes_of(dispatcher, 2, preferred_lane=3) == [3, 3]


def test_a_preference_leaves_no_lane_much_fuller_than_others() -> None:
    dispatcher = Dispatcher(NUM_LANES, NUM_SLOTS, 100, rows_before_spread=1)
    lanes = lanes_of(dispatcher, NUM_LANES * NUM_SLOTS, preferred_lane=3)
    assert all(lanes.count(lane) == NUM_SLOTS for lane in range(NUM_LANES)), (
        "none waits while another lane has room"
    )
    assert max(lanes[:12].count(lane) for lane in range(NUM_LANES)) <= 7


def test_a_lane_that_is_gone_or_full_is_not_waited_for() -> None:
    dispatcher = Dispatcher(NUM_LANES, NUM_SLOTS, 100, rows_before_spread=1)
    dispatcher.remove_lane(3)
    assert lanes_of(dispatcher, 1, preferred_lane=3) == [0]
