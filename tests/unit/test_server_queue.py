"""The queue against its promises, over random histories."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.server.engine.queue import Call, Queue, Sequence
from dragoman.server.engine.scheduler import QueueFullError, Scheduler

MAX_ROWS = 5
Histories = st.lists(
    st.tuples(st.sampled_from(["add", "add", "take", "remove"]), st.integers(0, 3)), max_size=60
)


@given(Histories, st.data())
def test_calls_share_rows_evenly_and_each_keeps_its_order(
    history: list[tuple[str, int]], data: st.DataObject
) -> None:
    queue, calls = Queue(), [Call() for _ in range(4)]
    waiting: dict[Call, list[Sequence]] = {call: [] for call in calls}
    passed_by: dict[Call, dict[Call, int]] = {call: {} for call in calls}  # rows of others while it waited
    for what, number in history:
        call = calls[number]
        if what == "add":
            sequence = Sequence(1, num_rows=data.draw(st.integers(1, MAX_ROWS)), call=call)
            queue.add(sequence)
            waiting[call].append(sequence)
        elif what == "remove" and waiting[call]:
            victim = data.draw(st.sampled_from(waiting[call]))
            queue.remove(victim)
            waiting[call].remove(victim)
        elif what == "take" and len(queue):
            in_order = list(queue)
            assert sorted(map(id, in_order)) == sorted(
                id(each) for all_of in waiting.values() for each in all_of
            )
            sequence = queue.first()
            assert in_order[0] is sequence, "iterating tells the order"
            assert next(queue.firsts(1)) is sequence
            assert {each.call for each in queue.firsts(9)} == {each for each in calls if waiting[each]}
            queue.take(sequence)
            assert waiting[sequence.call].pop(0) is sequence, "a call's sequences keep their order"
            for other in calls:
                if waiting[other]:
                    passed = passed_by[other]
                    passed[sequence.call] = passed.get(sequence.call, 0) + sequence.num_rows
            passed_by[sequence.call] = {}
        for each in calls:
            if not waiting[each]:
                passed_by[each] = {}
            # It pays for its last sequence, one row a turn; then it waits for one turn of each other.
            assert all(rows <= 2 * MAX_ROWS + 1 for rows in passed_by[each].values()), (
                "a call waits for too long"
            )
            assert each.num_waiting_rows == sum(one.num_rows for one in waiting[each])
        assert len(queue) == sum(map(len, waiting.values()))
        assert queue.num_rows == sum(each.num_waiting_rows for each in calls)


@given(st.lists(st.lists(st.integers(1, MAX_ROWS), min_size=1, max_size=12), min_size=1, max_size=4))
def test_iterating_tells_the_order_in_which_all_are_served(calls: list[list[int]]) -> None:
    queue = Queue()
    for rows in calls:
        call = Call()
        for num_rows in rows:
            queue.add(Sequence(1, num_rows=num_rows, call=call))
    told, served = list(queue), []
    while queue:
        served.append(queue.first())
        queue.take(served[-1])
    assert told == served
    assert queue.num_rows == 0


def test_a_new_call_waits_for_one_turn_of_each_other() -> None:
    queue, heavy = Queue(), [Call(), Call()]
    for call in heavy:
        for _ in range(100):
            queue.add(Sequence(1, call=call))
    for _ in range(50):
        queue.take(queue.first())
    queue.add(newcomer := Sequence(1))
    assert newcomer in list(queue)[:3]


def test_a_call_with_all_rows_leaves_reserved_ones_to_others() -> None:
    scheduler = Scheduler(2, 8, max_waiting=200, max_start_tokens=100, reserved_rows=2)
    heavy = Call()
    scheduler.submit(*(Sequence(1, call=heavy) for _ in range(100)))
    assert [scheduler.plan(lane, 0.0).num_rows for lane in (0, 1)] == [8, 8]
    others = [Sequence(1), Sequence(1, num_rows=2), Sequence(1)]
    for other in others:
        scheduler.submit(other)
    assert [sequence for sequence, _ in scheduler.plan(0, 0.0).starts] == [others[0], others[2]], (
        "one row was left, not two"
    )
    assert [sequence for sequence, _ in scheduler.plan(1, 0.0).starts] == [others[1]]
    assert heavy.num_running_rows == 16
    scheduler.finish(others[0])
    scheduler.plan(0, 0.0)
    assert heavy.num_running_rows == 16, "it never has more than the rows that are anybody's"


def test_searches_of_a_whole_lane_leave_reserved_rows_to_others() -> None:
    scheduler = Scheduler(1, 8, max_waiting=200, max_start_tokens=100, reserved_rows=2)
    heavy = Call()
    searches = [Sequence(1, num_rows=8, call=heavy) for _ in range(3)]
    scheduler.submit(*searches)
    single = Sequence(1)
    scheduler.submit(single)
    assert [sequence for sequence, _ in scheduler.plan(0, 0.0).starts] == [searches[0], single]
    scheduler.finish(searches[0])
    scheduler.submit(*(Sequence(1) for _ in range(9)))
    assert searches[1] in [sequence for sequence, _ in scheduler.plan(0, 0.0).starts], (
        "who has a reserved row takes none of those that a search waits for"
    )


def test_a_part_of_the_queue_is_for_small_calls() -> None:
    scheduler = Scheduler(1, 2, max_waiting=32, max_start_tokens=100)
    heavy = Call()
    scheduler.submit(*(Sequence(1, call=heavy) for _ in range(34)))
    with pytest.raises(QueueFullError):  # it has more than a sixteenth
        scheduler.submit(Sequence(1, call=heavy))
    for _ in range(4):
        small = Call()
        scheduler.submit(Sequence(1, call=small), Sequence(1, call=small))
    assert scheduler.num_waiting == 42
    with pytest.raises(QueueFullError):  # a quarter more is a quarter
        scheduler.submit(Sequence(1))
    assert scheduler.num_waiting == 42


def test_a_call_is_queued_whole_or_not_at_all() -> None:
    scheduler = Scheduler(1, 2, max_waiting=3, max_start_tokens=100)
    call = Call()
    with pytest.raises(QueueFullError):  # two may run and three wait
        scheduler.submit(*(Sequence(1, call=call) for _ in range(6)))
    assert (scheduler.num_waiting, call.num_waiting_rows) == (0, 0)


def test_a_lane_runs_as_many_as_its_steps_may_cost_and_lets_others_pass() -> None:
    scheduler = Scheduler(1, 8, max_waiting=200, max_start_tokens=100, reserved_rows=2, max_step_cost=40)
    heavy = Call()
    costly = [Sequence(1, cost=10, call=heavy) for _ in range(20)]
    scheduler.submit(*costly)
    assert [sequence for sequence, _ in scheduler.plan(0, 0.0).starts] == costly[:4]
    plain, dear, light = Sequence(1), Sequence(1, cost=9), Sequence(1, cost=1)
    scheduler.submit(plain)
    scheduler.submit(dear)
    scheduler.submit(light)
    assert [sequence for sequence, _ in scheduler.plan(0, 0.0).starts] == [plain, dear, light], (
        "plain ones cost nothing, a small call has a quarter more"
    )
    scheduler.submit(late := Sequence(1, cost=10))
    assert not scheduler.plan(0, 0.0).starts
    scheduler.finish(costly[0])
    assert [sequence for sequence, _ in scheduler.plan(0, 0.0).starts] == [costly[4]]
    scheduler.finish(costly[1])
    assert [sequence for sequence, _ in scheduler.plan(0, 0.0).starts] == [late]


def test_what_costs_more_than_a_step_may_runs_alone_among_costly_ones() -> None:
    scheduler = Scheduler(1, 8, max_waiting=200, max_start_tokens=100, max_step_cost=40)
    call = Call()
    dear = [Sequence(1, num_rows=4, cost=100, call=call) for _ in range(2)]
    scheduler.submit(*dear)
    assert [sequence for sequence, _ in scheduler.plan(0, 0.0).starts] == dear[:1]
    scheduler.finish(dear[0])
    assert [sequence for sequence, _ in scheduler.plan(0, 0.0).starts] == dear[1:]


def test_what_costs_too_much_for_a_lane_that_runs_starts_on_an_idle_one() -> None:
    scheduler = Scheduler(
        2, 8, max_waiting=200, max_start_tokens=100, rows_before_spread=8, reserved_rows=1, max_step_cost=40
    )
    first, second, plain = Sequence(1, cost=30), Sequence(1, cost=30), Sequence(1)
    scheduler.submit(first)
    scheduler.plan(0, 0.0)
    scheduler.submit(plain)
    assert not scheduler.has_work(1), "the lane that runs has room for it"
    scheduler.plan(0, 0.0)
    scheduler.submit(second)
    assert scheduler.wants_idle_lane()
    assert scheduler.has_work(1)
    assert [sequence for sequence, _ in scheduler.plan(1, 0.0).starts] == [second]


def test_the_largest_call_is_queued_while_others_run() -> None:
    scheduler = Scheduler(1, 4, max_waiting=8, max_start_tokens=100)
    scheduler.submit(Sequence(1))
    scheduler.plan(0, 0.0)
    call = Call()
    scheduler.submit(*(Sequence(1, call=call) for _ in range(12)))
    with pytest.raises(QueueFullError):
        scheduler.submit(Sequence(1))
