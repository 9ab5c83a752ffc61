"""The dispatcher against its promises, in front of simulated lanes and over random histories."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.simulated_lanes import Service

from dragoman.server.engine.dispatcher import Call, Dispatcher, QueueFullError, Sequence
from dragoman.server.priority import Priority


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 3, 16]), st.integers(1, 8), st.integers(0, 12))
def test_every_sequence_ends_once_whatever_happens(
    data: st.DataObject, num_lanes: int, num_slots: int, max_waiting: int
) -> None:
    lookahead = data.draw(st.integers(0, 5))
    service = Service(
        num_lanes,
        num_slots,
        max_waiting,
        reserved_rows=data.draw(st.integers(0, 2)),
        max_step_cost=8,
        rows_before_spread=data.draw(st.integers(1, 6)),
        lookahead_rows=lookahead,
    )
    dispatcher = service.dispatcher
    calls = [Call() for _ in range(3)]
    for now in range(data.draw(st.integers(1, 40))):
        is_open = [each for each in service.accepted if each not in service.outcomes]
        actions = [
            "submit",
            "submit",
            "submit",
            "step",
            "step",
            "step",
            "cancel",
            "expire",
            "kill",
            "retire",
            "replace",
        ]
        match data.draw(st.sampled_from(actions)):
            case "submit":
                call = data.draw(st.sampled_from([*calls, Call()]))
                num_rows = data.draw(st.integers(1, num_slots))
                deadline = data.draw(st.none() | st.integers(now + 1, now + 10))
                cost = data.draw(st.sampled_from([0, 0, 1, 3, 9]))
                new = [
                    Sequence(data.draw(st.integers(1, 90)), deadline, num_rows, call, cost)
                    for _ in range(data.draw(st.integers(1, 4)))
                ]
                try:
                    service.submit(*new, num_steps=data.draw(st.integers(1, 9)))
                except QueueFullError:
                    num_open = sum(each.num_rows for each in is_open)
                    asked = num_rows * len(new)
                    num_serving = len(service.lanes.keys() - service.retiring)
                    assert num_open + asked > max_waiting + num_serving * num_slots
                    assert not any(each in call.waiting for each in new), "all or none"
            case "step" if service.lanes:
                service.step(data.draw(st.sampled_from(sorted(service.lanes))))
            case "cancel" if is_open:
                service.cancel(data.draw(st.sampled_from(is_open)))
            case "expire":
                for sequence in dispatcher.expire(now):
                    assert sequence.deadline_s is not None
                    assert sequence.deadline_s <= now
                    service.end(sequence, "expired")
                service.dispatch()
            case "kill" if service.lanes:
                service.kill(data.draw(st.sampled_from(sorted(service.lanes))))
            case "retire" if service.lanes.keys() - service.retiring:
                service.retire(data.draw(st.sampled_from(sorted(service.lanes.keys() - service.retiring))))
            case "replace" if len(service.lanes) < num_lanes:
                service.replace(data.draw(st.sampled_from(sorted({*range(num_lanes)} - {*service.lanes}))))
        _check_counts(service, num_slots, lookahead)
        for index in list(service.retiring):
            if dispatcher.is_empty(index):
                assert not service.kill(index), "nothing is lost with a lane that has retired"
    for index in {*range(num_lanes)} - {*service.lanes}:
        service.replace(index)
    if not service.lanes.keys() - service.retiring:
        service.kill(0)
        service.replace(0)
    service.finish_all()
    _check_counts(service, num_slots, lookahead)
    assert (dispatcher.num_running, dispatcher.num_waiting, dispatcher.num_used_slots) == (0, 0, 0)
    assert all(number == 1 for number in service.num_starts.values()), "it started twice"
    ended = {each for each, outcome in service.outcomes.items() if outcome == "finished"}
    assert ended <= {*service.num_starts}


def _check_counts(service: Service, num_slots: int, lookahead: int) -> None:
    dispatcher = service.dispatcher
    is_open = [each for each in service.accepted if each not in service.outcomes]
    running = [each for each in is_open if service.num_starts.get(each)]
    sent = [each for each in is_open if not each.waiting]
    assert dispatcher.num_running == len(running)
    assert dispatcher.num_used_slots == sum(each.num_rows for each in running)
    assert dispatcher.num_waiting == len(is_open) - len(running)
    num_lanes = len(service.lanes.keys() - service.retiring)
    assert dispatcher.num_slots == num_lanes * (num_slots + dispatcher.reserved_rows)
    for call in {each.call for each in service.accepted}:
        assert call.num_given_rows == sum(each.num_rows for each in sent if each.call is call)
        assert call.num_waiting_rows == sum(
            each.num_rows for each in is_open if each.waiting and each.call is call
        )
    for index in service.lanes:
        here = [each for each in sent if each.lane == index]
        shared = [each for each in here if not each.is_reserved]
        committed = max((each.num_rows for each in shared), default=0)
        assert sum(each.num_rows for each in shared) <= num_slots + max(lookahead, committed)
        assert sum(each.num_rows for each in here if each.is_reserved) <= dispatcher.reserved_rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=2, max_size=6),
    st.sampled_from([1, 2, 16]),
    st.integers(0, 4),
)
def test_calls_take_turns_by_rows(calls: list[tuple[int, int]], num_lanes: int, lookahead: int) -> None:
    """While two calls wait, neither gets more rows than the other, but for a turn that is paid for afterwards."""
    service = Service(num_lanes, 5, lookahead_rows=lookahead)
    blockers = [Sequence(1, num_rows=5) for _ in range(2 * num_lanes)]
    for blocker in blockers:
        service.submit(blocker)
    waiting = []
    for num_sequences, num_rows in calls:
        call = Call()
        waiting.append(call)
        service.submit(*(Sequence(1, num_rows=num_rows, call=call) for _ in range(num_sequences)))
    got = dict.fromkeys(waiting, 0)
    num_before = len(service.sent)
    service.finish_all()
    left = dict(zip(waiting, (number for number, _ in calls), strict=True))
    for sequence, _ in service.sent[num_before:]:
        if sequence.call not in got:
            continue
        got[sequence.call] += sequence.num_rows
        left[sequence.call] -= 1
        both = [rows for call, rows in got.items() if left[call]]
        # One paid-for sequence, one that others overtook it with, and one turn.
        assert not both or max(both) - min(both) <= 5 + 2 * 5 + 5


def test_a_few_inputs_run_on_one_lane() -> None:
    service = Service(16, 32, rows_before_spread=8, lookahead_rows=8)
    for _ in range(8):
        service.submit(Sequence(5), num_steps=9)
        service.step_all()
    assert {lane for _, lane in service.sent} == {0}
    service.submit(Sequence(5))
    assert service.sent[-1][1] == 1


def test_the_fullest_of_the_lanes_with_few_rows_is_joined() -> None:
    service = Service(3, 32, rows_before_spread=4)
    service.submit(*(Sequence(5) for _ in range(9)), num_steps=9)
    assert [lane for _, lane in service.sent] == [0] * 4 + [1] * 4 + [2]
    for sequence, _ in service.sent[2:8]:
        service.cancel(sequence)
    service.step_all()
    assert [lane.num_rows for lane in service.lanes.values()] == [2, 0, 1]
    service.submit(*(Sequence(5) for _ in range(2)))
    assert [lane for _, lane in service.sent[-2:]] == [0, 0]


def test_long_inputs_and_bursts_spread_at_once() -> None:
    service = Service(4, 32, rows_before_spread=8)
    service.submit(Sequence(5), num_steps=9)
    service.submit(Sequence(500), num_steps=9)
    assert [lane for _, lane in service.sent] == [0, 1], "an idle lane wakes for a long input"
    service.submit(Sequence(5), num_steps=9)
    service.submit(Sequence(500), num_steps=9)
    assert [lane for _, lane in service.sent[2:]] == [0, 2], "short inputs do not join a long one"
    service.submit(*(Sequence(5) for _ in range(60)), num_steps=9)
    assert [lane.room.num_used for lane in service.dispatcher._lanes.values()] == [16] * 4


def test_with_sixteen_lanes_every_lane_gets_work() -> None:
    service = Service(16, 32, rows_before_spread=8, lookahead_rows=8)
    for _ in range(256):
        service.submit(Sequence(5))
    assert {lane for _, lane in service.sent} == {*range(16)}
    service = Service(16, 32, rows_before_spread=8, lookahead_rows=8)
    service.submit(*(Sequence(5) for _ in range(256)))
    assert [lane for _, lane in service.sent[128:144]] == [*range(16)], "what is beyond few rows goes round"
    assert all(sum(lane == index for _, lane in service.sent) == 16 for index in range(16))


def test_a_full_lane_gets_a_few_more_that_start_before_the_front_hears() -> None:
    service = Service(2, 4, lookahead_rows=2)
    service.submit(*(Sequence(5) for _ in range(20)), num_steps=3)
    assert sorted(lane for _, lane in service.sent) == [0] * 6 + [1] * 6
    assert service.dispatcher.num_waiting == 20
    service.step_all()
    assert (service.dispatcher.num_running, service.dispatcher.num_waiting) == (8, 12)
    lane = service.lanes[0]
    lane.step()
    assert len(lane.step()[1]) == 4
    assert len(lane.step()[0]) == 2, "without a word from the front"


def test_what_waits_goes_to_the_lane_that_has_room_first() -> None:
    service = Service(2, 4, lookahead_rows=1)
    service.submit(*(Sequence(5) for _ in range(8)), num_steps=9)
    service.submit(*(Sequence(5) for _ in range(9)))
    assert len(service.sent) == 10
    service.step_all()
    for sequence in [each for each, lane in service.sent[:8] if lane == 1]:
        service.cancel(sequence)
    service.step(1)
    assert {lane for _, lane in service.sent[10:]} == {1}


def test_small_calls_find_room_while_one_call_has_everything() -> None:
    service = Service(2, 8, reserved_rows=2, lookahead_rows=3)
    heavy = Call()
    service.submit(*(Sequence(1, call=heavy) for _ in range(200)), num_steps=50)
    assert heavy.num_given_rows == 2 * (8 + 3)
    small = [Sequence(1), Sequence(1, num_rows=2), Sequence(1)]
    for sequence in small:
        service.submit(sequence, num_steps=50)
    assert [(sequence, sequence.lane) for sequence in small] == [(small[0], 0), (small[1], 1), (small[2], 0)]
    assert all(sequence.is_small and sequence.is_reserved for sequence in small)
    service.step_all()
    assert all(sequence in service.lanes[sequence.lane].rows for sequence in small), "they start at once"
    service.submit(late := Sequence(1))
    assert late.waiting
    service.cancel(small[1])
    service.step(1)
    assert (late.lane, late.is_reserved) == (1, True)


def test_a_call_with_much_elsewhere_gets_no_reserved_rows() -> None:
    service = Service(2, 4, reserved_rows=2)
    service.submit(*(Sequence(1) for _ in range(4)), num_steps=9)
    heavy = Call()
    service.submit(*(Sequence(1, call=heavy) for _ in range(9)), num_steps=9)
    assert heavy.num_given_rows == 4
    assert not any(each.is_reserved for each in service.accepted if each.call is heavy)


def test_a_part_of_the_queue_is_for_small_calls() -> None:
    dispatcher = Dispatcher(1, 2, 32)
    heavy = Call()
    dispatcher.submit(*(Sequence(1, call=heavy) for _ in range(34)))
    dispatcher.dispatch()
    with pytest.raises(QueueFullError):  # it has more than a sixteenth
        dispatcher.submit(Sequence(1, call=heavy))
    for _ in range(4):
        small = Call()
        dispatcher.submit(Sequence(1, call=small), Sequence(1, call=small))
    with pytest.raises(QueueFullError):  # a quarter more is a quarter
        dispatcher.submit(Sequence(1))
    assert dispatcher.num_waiting == 34 + 8


def test_the_largest_call_is_queued_while_others_run() -> None:
    service = Service(1, 4, 8, lookahead_rows=2)
    service.submit(Sequence(1), num_steps=9)
    call = Call()
    service.submit(*(Sequence(1, call=call) for _ in range(12)))
    with pytest.raises(QueueFullError):
        service.submit(Sequence(1))


def test_what_waits_on_a_lane_counts_as_waiting() -> None:
    service = Service(2, 4, 8, lookahead_rows=3)
    service.submit(*(Sequence(1) for _ in range(8)), num_steps=9)
    for _ in range(10):  # no call is small here: half a row
        if service.dispatcher.num_waiting - 8 == 8:
            break
        service.submit(Sequence(1), num_steps=9)
    with pytest.raises(QueueFullError):
        service.submit(Sequence(1))
    assert service.dispatcher.num_waiting == 16


def test_a_wide_search_is_overtaken_for_a_while_and_then_gets_a_lane() -> None:
    """One long row in each lane, a search that needs a whole lane first in line, many single rows behind it."""
    service = Service(2, 32, lookahead_rows=8)
    for _ in range(2):
        service.submit(Sequence(5), num_steps=100)
    service.step_all()
    search = Sequence(5, num_rows=32)
    service.submit(search)
    for _ in range(2000):
        service.submit(Sequence(5), num_steps=10)
    service.step_all()
    assert sum(lane.num_rows for lane in service.lanes.values()) >= 62, "no row waits for the search yet"
    assert search.num_overtaking_rows <= 2 * 32
    before = 0
    while search not in service.num_starts:
        service.step_all()
        before += 1
        num_idle = sum(32 - lane.num_rows_computed for lane in service.lanes.values())
        assert num_idle <= 32 or search in service.num_starts, "only one lane waits for it"
    assert before <= 100 + 2 * 10, "it starts soon after the long row of its lane has ended"


def test_one_lane_drains_for_a_wide_search_that_was_overtaken_enough() -> None:
    service = Service(1, 8)
    service.submit(*(Sequence(5) for _ in range(8)), num_steps=3)
    search = Sequence(5, num_rows=8)
    service.submit(search)
    for _ in range(200):
        service.submit(Sequence(5), num_steps=3)
    for _ in range(20):
        service.step_all()
    assert search in service.outcomes
    assert sum(each in service.num_starts for each in service.accepted[9:]) <= 2 * 8 + 8 * 20 // 3


def test_a_few_beams_wait_on_a_lane_instead_of_in_front_of_all() -> None:
    service = Service(16, 32, lookahead_rows=8)
    service.submit(*(Sequence(5) for _ in range(16 * 29)), num_steps=20)
    service.submit(search := Sequence(5, num_rows=5), num_steps=9)
    for _ in range(40):
        service.submit(Sequence(5), num_steps=20)
    assert not search.waiting, "it took a lane's three rows and waits there for two"
    assert len(service.sent) == 16 * 29 + 1 + 40


def test_what_costs_nothing_passes_what_costs_too_much() -> None:
    service = Service(1, 8, reserved_rows=2, max_step_cost=40)
    heavy = Call()
    costly = [Sequence(1, cost=10, call=heavy) for _ in range(20)]
    service.submit(*costly, num_steps=9)
    assert [sequence for sequence, _ in service.sent] == costly[:4]
    plain, dear, light = Sequence(1), Sequence(1, cost=9), Sequence(1, cost=1)
    for sequence in (plain, dear, light):
        service.submit(sequence, num_steps=9)
    assert [sequence for sequence, _ in service.sent[4:]] == [plain, dear, light]


@pytest.mark.parametrize("num_lanes", [1, 2, 16])
def test_a_dead_lane_loses_what_ran_there_and_nothing_else(num_lanes: int) -> None:
    service = Service(num_lanes, 4, lookahead_rows=2)
    call = Call()
    service.submit(*(Sequence(5, call=call) for _ in range(4 * num_lanes)), num_steps=9)
    service.step_all()
    service.submit(*(Sequence(5) for _ in range(9 * num_lanes)), num_steps=9)
    here = [each for each, lane in service.sent if lane == 0]
    running, unstarted = here[:4], here[4:]
    assert len(unstarted) == 2
    service.sent.clear()
    assert service.kill(0) == running
    assert [each for each, _ in service.sent] == []
    assert all(each.waiting for each in unstarted)
    assert list(service.dispatcher._queue)[:2] == unstarted, "first in line, in their order"
    assert service.dispatcher.num_running == 4 * (num_lanes - 1)
    service.replace(0)
    assert [each for each, lane in service.sent if lane == 0][:2] == unstarted
    service.finish_all()
    assert all(service.outcomes[each] == "finished" for each in unstarted)


def test_those_that_wait_again_take_turns_before_others() -> None:
    service = Service(1, 2, lookahead_rows=3)
    first, second, third = Call(), Call(), Call()
    for call, number in ((first, 2), (second, 3), (third, 3)):
        service.submit(*(Sequence(5, call=call) for _ in range(number)))
    in_order = service.accepted
    assert [each for each, _ in service.sent] == in_order[:5]
    service.kill(0)
    service.sent.clear()
    service.replace(0)
    again = [in_order[place] for place in (0, 2, 5, 1, 3)]
    assert [each for each, _ in service.sent] == again, "those are next whose turn it was"


def test_what_lanes_die_of_is_given_up() -> None:
    service = Service(1, 2)
    service.submit(poison := Sequence(5))
    assert service.kill(0) == []
    service.replace(0)
    assert service.kill(0) == [poison]
    assert service.dispatcher.num_waiting == 0


def test_a_cancelled_one_does_not_wait_again() -> None:
    service = Service(1, 1, lookahead_rows=1)
    service.submit(Sequence(5), cancelled := Sequence(5))
    assert not service.dispatcher.cancel(cancelled)
    assert cancelled in service.kill(0)


def test_a_deadline_counts_for_one_that_waits_again() -> None:
    service = Service(1, 1)
    service.submit(late := Sequence(5, deadline_s=5.0))
    service.kill(0)
    assert service.dispatcher.expire(4.0) == []
    assert service.dispatcher.expire(5.0) == [late]
    assert service.dispatcher.expire(6.0) == []


def test_rows_of_other_fronts_are_left_to_them() -> None:
    dispatcher = Dispatcher(2, 8, 100, rows_before_spread=4, lookahead_rows=2)
    dispatcher.set_load(0, 8, 1)
    dispatcher.submit(*(Sequence(5) for _ in range(3)))
    assert [lane for _, lane in dispatcher.dispatch()] == [1, 1, 1]
    dispatcher.set_load(0, 2, 0)
    dispatcher.submit(*(Sequence(5) for _ in range(2)))
    assert [lane for _, lane in dispatcher.dispatch()] == [1, 0], "the fullest with few rows, then the other"


def test_a_front_is_not_kept_out_by_others_that_fill_all_lanes() -> None:
    dispatcher = Dispatcher(2, 8, 100, reserved_rows=1, lookahead_rows=2)
    for lane in (0, 1):
        dispatcher.set_load(lane, 9, 50)
    call = Call()
    dispatcher.submit(
        *(Sequence(5, call=call) for _ in range(9)),
    )
    assert len(dispatcher.dispatch()) == 4
    dispatcher = Dispatcher(2, 8, 100, lookahead_rows=2)
    dispatcher.set_load(0, 8, 0)
    dispatcher.set_load(1, 8, 0)
    dispatcher.submit(Sequence(5, num_rows=8))
    assert len(dispatcher.dispatch()) == 1, "a wide one as well"


def test_own_rows_in_a_report_are_not_counted_twice() -> None:
    service = Service(1, 8)
    service.submit(*(Sequence(5) for _ in range(3)), num_steps=9)
    service.step(0)
    service.submit(*(Sequence(5) for _ in range(5)), num_steps=9)
    assert len(service.sent) == 8


def test_nothing_is_given_while_no_lane_is_there() -> None:
    service = Service(0, 4, 8, reserved_rows=1)
    service.submit(*(Sequence(5) for _ in range(8)))
    assert service.sent == []
    service.replace(3)
    assert [lane for _, lane in service.sent] == [3] * 4
    service.finish_all()


def test_a_call_is_queued_whole_or_not_at_all() -> None:
    dispatcher = Dispatcher(1, 2, 3)
    call = Call()
    with pytest.raises(QueueFullError):  # two may run and three wait
        dispatcher.submit(*(Sequence(1, call=call) for _ in range(6)))
    assert (dispatcher.num_waiting, call.num_waiting_rows) == (0, 0)


def test_what_costs_too_much_for_a_lane_that_runs_starts_on_an_idle_one() -> None:
    service = Service(2, 8, rows_before_spread=8, reserved_rows=1, max_step_cost=40)
    for sequence in (Sequence(1, cost=30), Sequence(1), Sequence(1, cost=30)):
        service.submit(sequence)
    assert [lane for _, lane in service.sent] == [0, 0, 1]


def test_a_client_leaves_a_part_of_the_queue_to_others_in_however_many_calls() -> None:
    dispatcher = Dispatcher(0, 8, 64)
    num_accepted = 0
    with pytest.raises(QueueFullError):
        while True:
            dispatcher.submit(Sequence(1, call=Call(client="many")))
            num_accepted += 1
    assert num_accepted == 64 + 16
    for _ in range(4):
        dispatcher.submit(Sequence(1, call=Call(client="few")))
    with pytest.raises(QueueFullError):
        dispatcher.submit(Sequence(1, call=Call(client="few")))


def test_low_priority_leaves_a_part_of_the_queue_and_high_priority_has_one_of_its_own() -> None:
    dispatcher = Dispatcher(0, 8, 64)

    def fill(priority: Priority) -> int:
        call = Call(client="one", priority=priority)
        for number in itertools.count():
            if not dispatcher.has_room(call, 8):
                return 8 * number
            dispatcher.submit(*(Sequence(1, call=call) for _ in range(8)))
        raise AssertionError

    assert fill(Priority.LOW) == 64 - 16
    assert fill(Priority.NORMAL) == 16
    assert fill(Priority.HIGH) == 16


def test_the_largest_call_of_low_priority_fits_where_nothing_waits() -> None:
    dispatcher = Dispatcher(1, 8, 64)
    call = Call(priority=Priority.LOW)
    dispatcher.submit(*(Sequence(1, call=call) for _ in range(64 + 8)))
    assert not dispatcher.has_room(Call(priority=Priority.LOW), 1)


def test_reserved_rows_go_to_clients_in_turn() -> None:
    service = Service(1, 2, reserved_rows=2)
    searches = Call()
    service.submit(*(Sequence(1, num_rows=2, call=searches) for _ in range(3)), num_steps=100)
    for _ in range(20):
        service.submit(Sequence(1, call=Call(client="many")), num_steps=3)
    service.step_all()
    few = Sequence(1, call=Call(client="few"))
    service.submit(few)
    service.step_all(4)
    assert few in service.lanes[0].started, "a client with twenty small calls took the reserved rows first"
