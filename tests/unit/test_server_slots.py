"""Slots: the only owner of token ids and lengths."""

import pytest

from dragoman.server.execution.slots import Slots


def numbers(slots: Slots) -> dict[str, list[int]]:
    return {name: array.tolist() for name, array in slots.inputs.items()}


def test_a_slot_that_was_never_started_is_harmless() -> None:
    assert numbers(Slots(2)) == {"token_ids": [0, 0], "lengths": [0, 0], "source_lengths": [1, 1]}


def test_slots_start_feed_and_advance() -> None:
    slots = Slots(4)
    slots.start([2, 0], 7, 0, [5, 6])  # sources: all begin with one token
    slots.start([1], [9], [3])  # a prompt
    assert numbers(slots) == {
        "token_ids": [7, 9, 7, 0],
        "lengths": [0, 3, 0, 0],
        "source_lengths": [6, 1, 5, 1],
    }
    slots.advance(2)
    slots.advance(3, 4)
    slots.feed([11, 12])
    slots.feed_to([3, 0], [14, 15])
    slots.feed_to([], [])
    assert numbers(slots) == {
        "token_ids": [15, 12, 7, 14],
        "lengths": [5, 8, 4, 0],
        "source_lengths": [6, 1, 5, 1],
    }
    assert slots.num_tokens([1, 3]) == [8, 0]
    assert slots.num_source_tokens([2]) == [5]
    assert [slots.max_tokens(num_slots) for num_slots in (1, 4)] == [5, 8]
    slots.seek(2)
    assert slots.num_tokens(range(4)) == [2] * 4


def test_a_copy_has_all_numbers_and_a_fork_the_length_alone() -> None:
    slots = Slots(4)
    slots.start([0, 1], [7, 8], [2, 3], [5, 6])
    slots.copy([0, 1], [3, 2])
    slots.start([0], 20, 10)
    slots.fork([0, 0], [1, 3])
    assert numbers(slots) == {
        "token_ids": [20, 8, 8, 7],
        "lengths": [10, 10, 3, 10],
        "source_lengths": [5, 6, 6, 5],
    }


def test_the_views_are_read_only_and_see_every_change() -> None:
    slots = Slots(2)
    views = dict(slots.inputs)
    for view in views.values():
        with pytest.raises(ValueError, match="read-only"):
            view[:] = 1
    slots.start([1], 7, 3, 5)
    assert {name: view[1] for name, view in views.items()} == {
        "token_ids": 7,
        "lengths": 3,
        "source_lengths": 5,
    }
