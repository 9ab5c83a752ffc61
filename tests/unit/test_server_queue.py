"""The queue against its promises, over random histories."""

from hypothesis import given
from hypothesis import strategies as st

from dragoman.server.engine.queue import Call, Queue, Sequence
from dragoman.server.engine.scheduler import Scheduler

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


def test_searches_of_a_whole_lane_leave_reserved_rows_to_small_ones() -> None:
    scheduler = Scheduler(8, reserved_rows=2)
    heavy = Call()
    searches = [Sequence(1, num_rows=8, call=heavy) for _ in range(3)]
    scheduler.submit(*searches)
    scheduler.submit(small := Sequence(1, is_small=True))
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == [searches[0], small]
    scheduler.submit(Sequence(1), late := Sequence(1, is_small=True))
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == [late]
    scheduler.finish(searches[0])
    assert searches[1] in [sequence for sequence, _ in scheduler.plan(0.0).starts], (
        "a sequence in a reserved row takes none of those that a search waits for"
    )


def test_a_lane_runs_as_many_as_its_steps_may_cost_and_lets_others_pass() -> None:
    scheduler = Scheduler(8, reserved_rows=2, max_step_cost=40)
    heavy = Call()
    costly = [Sequence(1, cost=10, call=heavy) for _ in range(20)]
    scheduler.submit(*costly)
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == costly[:4]
    plain, dear, light = Sequence(1), Sequence(1, cost=9, is_small=True), Sequence(1, cost=1, is_small=True)
    scheduler.submit(plain)
    scheduler.submit(dear)
    scheduler.submit(light)
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == [plain, dear, light], (
        "plain ones cost nothing, a small call has a quarter more"
    )
    scheduler.submit(late := Sequence(1, cost=10))
    assert not scheduler.plan(0.0).starts
    scheduler.finish(costly[0])
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == [costly[4]]
    scheduler.finish(costly[1])
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == [late]


def test_what_costs_more_than_a_step_may_runs_alone_among_costly_ones() -> None:
    scheduler = Scheduler(8, max_step_cost=40)
    call = Call()
    dear = [Sequence(1, num_rows=4, cost=100, call=call) for _ in range(2)]
    scheduler.submit(*dear)
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == dear[:1]
    scheduler.finish(dear[0])
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == dear[1:]
