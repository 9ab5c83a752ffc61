"""Dispatchers of several models over the same lanes: who goes where, and what becomes of lanes that retire."""

import pytest
from tests.unit.simulated_lanes import Service

from dragoman.server.engine.dispatcher import Call, Dispatcher, Sequence
from dragoman.server.engine.known_lane import LaneUse


def dispatchers(num_models: int, num_lanes: int) -> tuple[list[Dispatcher], list[LaneUse]]:
    uses = [LaneUse() for _ in range(num_lanes)]
    models = [Dispatcher(0, 8, 100) for _ in range(num_models)]
    for dispatcher in models:
        for lane, use in enumerate(uses):
            dispatcher.add_lane(lane, use)
    return models, uses


def send(dispatcher: Dispatcher, num_sequences: int = 1) -> list[int]:
    """The lanes that sequences of a call go to."""
    dispatcher.submit(*(Sequence(1) for _ in range(num_sequences)))
    return [lane for _, lane in dispatcher.dispatch()]


def test_models_with_little_to_do_take_a_lane_each() -> None:
    models, uses = dispatchers(3, 2)
    assert [send(model) for model in models] == [[0], [1], [0]]
    assert [use.num_rows for use in uses] == [2, 1]
    assert send(models[1], 3) == [1, 1, 1], "it goes on where it runs"
    [sequence] = models[2]._lanes[0].sent
    models[2].finish(sequence)
    assert send(models[2], 1) == [0]
    assert [use.num_rows for use in uses] == [2, 4]


def test_rows_of_a_lane_that_is_gone_are_not_counted() -> None:
    models, uses = dispatchers(2, 2)
    send(models[0], 3)
    models[0].remove_lane(0)
    assert uses[0].num_rows == 0


@pytest.mark.parametrize("others", [0, 9])
def test_a_lane_that_retires_gets_nothing_more_and_ends_what_it_has(others: int) -> None:
    service = Service(2, 4, lookahead_rows=2)
    sequences = [Sequence(1) for _ in range(20)]
    for sequence in sequences:
        service.submit(sequence, num_steps=3)
    service.step(0)
    has = [each for each in sequences if not each.waiting and each.lane == 0]
    assert len(has) == 6, "rows and a few that wait there"
    service.retire(0)
    service.dispatcher.set_load(0, 4, others)
    assert not service.dispatcher.is_empty(0)
    for _ in range(9):
        service.step(0)
    assert service.dispatcher.is_empty(0)
    assert all(service.outcomes[each] == "finished" for each in has)
    assert service.kill(0) == []
    service.finish_all()
    assert set(service.outcomes.values()) == {"finished"}


def test_room_is_that_of_the_lanes_that_serve() -> None:
    dispatcher = Dispatcher(1, 4, 8)
    send(dispatcher, 4)
    assert dispatcher.has_room(Call(), 8)
    dispatcher.add_lane(1)
    dispatcher.retire_lane(0)
    assert dispatcher.num_slots == 4
    assert dispatcher.has_room(Call(), 8 + 4), "what runs on the retiring lane takes no room of the other"
    assert not dispatcher.has_room(Call(), 8 + 4 + 3)
    assert send(dispatcher, 4) == [1] * 4
    assert dispatcher.num_waiting == 8
    for sequence in list(dispatcher._retiring[0].sent):
        dispatcher.start(sequence)
        dispatcher.finish(sequence)
    assert (dispatcher.num_waiting, dispatcher.num_used_slots) == (4, 0)
    assert dispatcher.has_room(Call(), 8)
