"""The scheduler against its promises, over random histories."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.server.engine.scheduler import Call, Departure, Plan, QueueFullError, Scheduler, Sequence


class Rows:
    """What a lane does with plans: the model that the scheduler's bookkeeping is held against."""

    def __init__(self) -> None:
        self.rows: list[Sequence] = []

    def carry_out(self, plan: Plan) -> None:
        for move in plan.moves:
            assert self.rows[move.source] is move.sequence
            self.rows[move.target] = self.rows[move.source]
        for sequence, rows in plan.starts:
            assert len(rows) == sequence.num_rows
            for row in rows:
                if row == len(self.rows):
                    self.rows.append(sequence)
                else:
                    self.rows[row] = sequence
        del self.rows[plan.num_rows :]
        assert len(self.rows) == plan.num_rows
        assert not any(sequence.finished for sequence in self.rows)
        assert all(self.rows.count(sequence) == sequence.num_rows for sequence in self.rows)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 5), st.integers(0, 6))
def test_every_sequence_gets_one_outcome_and_rows_stay_dense(
    data: st.DataObject, num_lanes: int, num_slots: int, max_waiting: int
) -> None:
    scheduler = Scheduler(
        num_lanes,
        num_slots,
        max_waiting,
        max_start_tokens=20,
        rows_before_spread=data.draw(st.integers(1, 6)),
        max_start_interval=data.draw(st.integers(1, 4)),
        read_together=data.draw(st.integers(1, 4)),
        reserved_rows=data.draw(st.integers(0, 2)),
        max_step_cost=8,
    )
    calls = [Call() for _ in range(3)]
    lanes = [Rows() for _ in range(num_lanes)]
    accepted: list[Sequence] = []
    outcomes: dict[int, str] = {}

    def settle(sequence: Sequence, outcome: str) -> None:
        assert id(sequence) not in outcomes, "settled twice"
        outcomes[id(sequence)] = outcome

    def step(lane: int, now: float) -> None:
        plan = scheduler.plan(lane, now)
        for sequence, departure in plan.dropped:
            settle(sequence, departure.name)
        lanes[lane].carry_out(plan)
        assert all(sequence.waiting and sequence.is_claimed for sequence in plan.ahead)
        assert not plan.ahead or plan.starts
        for sequence in plan.ahead:
            scheduler.end_reading(sequence, is_read=True)
        assert len(lanes[lane].rows) <= num_slots + scheduler.reserved_rows
        for sequence, _ in plan.starts:
            earlier = accepted[: accepted.index(sequence)]
            assert not any(each.waiting and each.call is sequence.call for each in earlier), "out of order"

    for now in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["submit", "submit", "cancel", "step", "step", "finish"])):
            case "submit":
                deadline = data.draw(st.none() | st.integers(now + 1, now + 10))
                num_rows = data.draw(st.integers(1, num_slots))
                call = data.draw(st.sampled_from([*calls, Call()]))
                cost = data.draw(st.sampled_from([0, 0, 1, 3, 9]))
                sequence = Sequence(data.draw(st.integers(1, 30)), deadline, num_rows, call, cost)
                open_rows = sum(s.num_rows for s in accepted if id(s) not in outcomes)
                try:
                    scheduler.submit(sequence)
                    accepted.append(sequence)
                except QueueFullError:
                    assert open_rows + num_rows > max_waiting + num_lanes * num_slots
            case "cancel":
                open_ones = [s for s in accepted if id(s) not in outcomes and not s.cancelled]
                if open_ones and scheduler.cancel(victim := data.draw(st.sampled_from(open_ones))):
                    settle(victim, "CANCELLED")
            case "finish":
                running = list(dict.fromkeys(s for lane in lanes for s in lane.rows if not s.finished))
                if running:
                    ended = data.draw(st.sampled_from(running))
                    scheduler.finish(ended)
                    settle(ended, "FINISHED")
            case "step":
                step(data.draw(st.integers(0, num_lanes - 1)), now)
        in_rows = [s for lane in lanes for s in lane.rows if not s.finished]
        assert scheduler.num_used_slots == len(in_rows)
        for call in calls:
            assert call.num_running_rows == sum(sequence.call is call for sequence in in_rows)
        for rows in lanes:
            shared = [s for s in rows.rows if not (s.finished or s.is_reserved)]
            assert len(shared) <= num_slots, "reserved rows are taken where there are no others"
            for most, is_reserved in ((8, False), (2, True)):
                costs = [s.cost for s in set(rows.rows) if s.is_reserved is is_reserved and not s.finished]
                assert sum(costs) <= most or sum(cost > 0 for cost in costs) == 1
        assert scheduler.num_running == len(set(in_rows))
        if scheduler.num_waiting:
            assert any(lane.rows for lane in lanes) or scheduler.wants_idle_lane(), "nobody comes for it"

    for _ in range(200):  # without deadlines or cancellations everything now runs to its end
        for lane in filter(scheduler.has_work, range(num_lanes)):
            step(lane, now=-1.0)
            for sequence in dict.fromkeys(lanes[lane].rows):
                scheduler.finish(sequence)
                settle(sequence, "FINISHED")
        if len(outcomes) == len(accepted):
            break
    assert len(outcomes) == len(accepted), "someone waits for ever"
    for lane in range(num_lanes):
        step(lane, now=-1.0)
        assert not scheduler.has_work(lane)
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)


def test_first_come_first_served() -> None:
    scheduler = Scheduler(1, 2, max_waiting=10, max_start_tokens=100)
    sequences = [Sequence(5) for _ in range(4)]
    for sequence in sequences:
        scheduler.submit(sequence)
    assert [s for s, _ in scheduler.plan(0, 0.0).starts] == sequences[:2]
    scheduler.finish(sequences[0])
    plan = scheduler.plan(0, 0.0)
    assert plan.starts == [(sequences[2], [0])], (
        "the freed row goes to the next in line, before the next step"
    )
    assert plan.num_rows == 2


def test_a_burst_spreads_over_the_lanes() -> None:
    scheduler = Scheduler(2, 32, max_waiting=100, max_start_tokens=10_000)
    for _ in range(8):
        scheduler.submit(Sequence(5))
    assert scheduler.plan(0, 0.0).num_rows == 4
    assert scheduler.plan(1, 0.0).num_rows == 4


def test_a_few_inputs_run_on_one_lane() -> None:
    scheduler = Scheduler(2, 32, max_waiting=100, max_start_tokens=10_000, rows_before_spread=4)
    scheduler.submit(Sequence(5))
    assert scheduler.wants_idle_lane()
    assert scheduler.plan(0, 0.0).num_rows == 1
    for _ in range(3):
        scheduler.submit(Sequence(5))
        assert not scheduler.wants_idle_lane()
        assert not scheduler.has_work(1)
    assert scheduler.plan(0, 0.0).num_rows == 4
    scheduler.submit(Sequence(5))
    assert scheduler.wants_idle_lane()
    assert scheduler.has_work(1)
    assert scheduler.plan(1, 0.0).num_rows == 1


def test_a_long_input_starts_on_an_idle_lane() -> None:
    scheduler = Scheduler(2, 32, max_waiting=100, max_start_tokens=10_000, rows_before_spread=4)
    scheduler.submit(Sequence(5))
    scheduler.plan(0, 0.0)
    scheduler.submit(Sequence(500))
    assert scheduler.wants_idle_lane()
    assert scheduler.plan(0, 0.0).num_rows == 1, "it is left to the idle lane"
    assert scheduler.plan(1, 0.0).num_rows == 1


def test_short_inputs_do_not_wait_behind_a_long_one() -> None:
    scheduler = Scheduler(2, 32, max_waiting=100, max_start_tokens=10_000, rows_before_spread=4)
    long = Sequence(500)
    scheduler.submit(long)
    assert scheduler.plan(0, 0.0).num_rows == 1
    scheduler.submit(Sequence(5))
    assert scheduler.wants_idle_lane()
    scheduler.finish(long)
    assert scheduler.plan(0, 0.0).num_rows == 1, "the long one is gone"
    scheduler.submit(Sequence(5))
    assert not scheduler.wants_idle_lane()
    assert scheduler.plan(0, 0.0).num_rows == 2


def test_a_full_lane_starts_several_at_once() -> None:
    scheduler = Scheduler(1, 32, max_waiting=100, max_start_tokens=10_000, max_start_interval=4)
    for _ in range(8):
        scheduler.submit(Sequence(5))
    assert len(scheduler.plan(0, 0.0).starts) == 8, "nobody is held up"
    num_starts = []
    for _ in range(8):
        scheduler.submit(Sequence(5))
        num_starts.append(len(scheduler.plan(0, 0.0).starts))
    assert num_starts == [0, 0, 0, 4, 0, 0, 0, 4]


def test_steps_taken_in_one_call_count() -> None:
    scheduler = Scheduler(1, 32, max_waiting=100, max_start_tokens=10_000, max_start_interval=4)
    for _ in range(8):
        scheduler.submit(Sequence(5))
    scheduler.plan(0, 0.0)
    scheduler.submit(Sequence(5))
    assert len(scheduler.plan(0, 0.0, num_steps=3).starts) == 0
    assert len(scheduler.plan(0, 0.0, num_steps=1).starts) == 1
    scheduler.submit(Sequence(5))
    assert len(scheduler.plan(0, 0.0, num_steps=4).starts) == 1


def test_a_lane_counts_searches_not_their_rows() -> None:
    """Three searches of five beams have fifteen rows, but end as seldom as three rows without."""
    scheduler = Scheduler(1, 20, max_waiting=100, max_start_tokens=10_000, max_start_interval=4)
    for _ in range(3):
        scheduler.submit(Sequence(5, num_rows=5))
    assert len(scheduler.plan(0, 0.0).starts) == 3
    scheduler.submit(Sequence(5, num_rows=5))
    assert len(scheduler.plan(0, 0.0).starts) == 1


def test_who_waits_is_read_with_who_starts_and_then_starts_at_once() -> None:
    scheduler = Scheduler(
        1, 16, max_waiting=100, max_start_tokens=10_000, max_start_interval=4, read_together=5
    )
    sequences = [Sequence(5, num_rows=2) for _ in range(20)]
    for sequence in sequences:
        scheduler.submit(sequence)
    plan = scheduler.plan(0, 0.0)
    assert [sequence for sequence, _ in plan.starts] == sequences[:8]
    assert plan.ahead == [], "more than five are read already"
    started, ahead = [], []
    for step in range(6):
        scheduler.finish(sequences[step])
        plan = scheduler.plan(0, 0.0)
        started.append([sequences.index(sequence) for sequence, _ in plan.starts])
        ahead.append([sequences.index(sequence) for sequence in plan.ahead])
        assert all(scheduler.end_reading(sequence, is_read=True) for sequence in plan.ahead)
    assert started == [[], [], [8, 9, 10], [11], [12], [13]]
    assert ahead == [[], [], [11, 12], [], [], [14, 15, 16, 17]]


def test_who_may_start_elsewhere_and_what_is_too_much_are_not_read_ahead() -> None:
    scheduler = Scheduler(2, 4, max_waiting=100, max_start_tokens=20, read_together=8)
    first, *others = [
        Sequence(5, num_rows=4),
        *(Sequence(5, num_rows=2) for _ in range(3)),
        Sequence(12, num_rows=2),
    ]
    for sequence in (first, *others):
        scheduler.submit(sequence)
    plan = scheduler.plan(0, 0.0)
    assert [sequence for sequence, _ in plan.starts] == [first]
    assert plan.ahead == [others[2]], (
        "four rows of the other lane are free; with the last it would be 22 tokens"
    )
    assert [sequence for sequence, _ in scheduler.plan(1, 0.0).starts] == others[:2]


def test_who_is_being_read_is_waited_for_by_lanes_that_run() -> None:
    scheduler = Scheduler(2, 4, max_waiting=100, max_start_tokens=100, read_together=8)
    running = [Sequence(5, num_rows=2) for _ in range(4)]
    for sequence in running:
        scheduler.submit(sequence)
    assert [len(scheduler.plan(lane, 0.0).starts) for lane in (0, 1)] == [2, 2]
    first, read, failed, dropped, single, behind = (
        Sequence(5, num_rows=2 - (index == 4)) for index in range(6)
    )
    for sequence in (first, read, failed, dropped, single, behind):
        scheduler.submit(sequence)
    scheduler.finish(running[0])
    plan = scheduler.plan(0, 0.0)
    assert [sequence for sequence, _ in plan.starts] == [first]
    assert plan.ahead == [read, failed, dropped]
    scheduler.finish(running[2])
    assert not scheduler.plan(1, 0.0).starts
    scheduler.cancel(dropped)
    told = [scheduler.end_reading(each, is_read=each is not failed) for each in plan.ahead]
    assert told == [True, False, False]
    assert [sequence for sequence, _ in scheduler.plan(1, 0.0).starts] == [read]
    scheduler.finish(running[1])
    plan = scheduler.plan(0, 0.0)
    assert [sequence for sequence, _ in plan.starts] == [failed]


def test_a_lane_without_rows_starts_whom_another_reads() -> None:
    scheduler = Scheduler(2, 2, max_waiting=100, max_start_tokens=100, read_together=8)
    sequences = [Sequence(5, num_rows=2) for _ in range(4)]
    for sequence in sequences[:2]:
        scheduler.submit(sequence)
    for lane in (0, 1):
        scheduler.plan(lane, 0.0)
    for sequence in sequences[2:]:
        scheduler.submit(sequence)
    scheduler.finish(sequences[0])
    plan = scheduler.plan(0, 0.0)
    assert plan.ahead == sequences[3:]
    scheduler.finish(sequences[1])
    assert [sequence for sequence, _ in scheduler.plan(1, 0.0).starts] == sequences[3:]
    assert not scheduler.end_reading(sequences[3], is_read=True), "it has a row"


def test_a_lane_with_few_rows_starts_at_once() -> None:
    scheduler = Scheduler(1, 32, max_waiting=100, max_start_tokens=10_000, max_start_interval=4)
    for _ in range(3):
        scheduler.submit(Sequence(5))
        assert len(scheduler.plan(0, 0.0).starts) == 1


def test_long_inputs_do_not_hold_up_running_rows() -> None:
    scheduler = Scheduler(1, 8, max_waiting=10, max_start_tokens=100)
    for num_tokens in (500, 60, 60, 30):
        scheduler.submit(Sequence(num_tokens))
    assert [len(scheduler.plan(0, 0.0).starts) for _ in range(3)] == [1, 1, 2]


def test_the_last_row_fills_a_hole_when_none_waits() -> None:
    scheduler = Scheduler(1, 4, max_waiting=0, max_start_tokens=100)
    sequences = [Sequence(1) for _ in range(4)]
    for sequence in sequences:
        scheduler.submit(sequence)
    scheduler.plan(0, 0.0)
    scheduler.finish(sequences[1])
    plan = scheduler.plan(0, 0.0)
    assert [(m.sequence, m.source, m.target) for m in plan.moves] == [(sequences[3], 3, 1)]
    assert plan.num_rows == 3


def test_a_cancelled_running_row_is_free_at_the_next_plan() -> None:
    scheduler = Scheduler(1, 2, max_waiting=2, max_start_tokens=100)
    running, neighbour, waiting = Sequence(1), Sequence(1), Sequence(1)
    for sequence in (running, neighbour, waiting):
        scheduler.submit(sequence)
    scheduler.plan(0, 0.0)
    assert not scheduler.cancel(running)
    plan = scheduler.plan(0, 0.0)
    assert plan.dropped == [(running, Departure.CANCELLED)]
    assert plan.starts == [(waiting, [0])]


def test_expired_sequences_never_reach_a_row() -> None:
    scheduler = Scheduler(1, 1, max_waiting=5, max_start_tokens=100)
    running, late, patient = Sequence(1, deadline_s=100.0), Sequence(1, deadline_s=5.0), Sequence(1)
    for sequence in (running, late, patient):
        scheduler.submit(sequence)
    scheduler.plan(0, 0.0)
    assert scheduler.plan(0, 5.0).dropped == [(late, Departure.EXPIRED)]
    plan = scheduler.plan(0, 100.0)
    assert plan.dropped == [(running, Departure.EXPIRED)]
    assert plan.starts == [(patient, [0])]


def test_the_queue_is_bounded() -> None:
    scheduler = Scheduler(1, 2, max_waiting=3, max_start_tokens=100)
    for _ in range(5):  # two slots are free, three may wait
        scheduler.submit(Sequence(1))
    with pytest.raises(QueueFullError):
        scheduler.submit(Sequence(1))


def test_far_deadlines_of_answered_sequences_do_not_pile_up() -> None:
    scheduler = Scheduler(1, 4, max_waiting=4, max_start_tokens=100)
    for _ in range(1000):
        sequence = Sequence(1, deadline_s=1e9)
        scheduler.submit(sequence)
        scheduler.plan(0, 0.0)
        scheduler.finish(sequence)
    assert len(scheduler._queue._deadlines) < 200


def test_a_beam_gets_all_its_rows_at_once_and_nobody_passes_it() -> None:
    scheduler = Scheduler(1, 4, max_waiting=10, max_start_tokens=100)
    single, beam, after = Sequence(1), Sequence(1, num_rows=4), Sequence(1)
    for sequence in (single, beam, after):
        scheduler.submit(sequence)
    assert scheduler.plan(0, 0.0).starts == [(single, [0])], "three free rows are not four"
    scheduler.finish(single)
    plan = scheduler.plan(0, 0.0)
    assert (plan.starts, plan.num_rows) == ([(beam, [0, 1, 2, 3])], 4)
    assert (scheduler.num_running, scheduler.num_used_slots) == (1, 4)
    assert not scheduler.plan(0, 0.0).starts
    scheduler.finish(beam)
    assert scheduler.plan(0, 0.0).starts == [(after, [0])]


def test_a_beam_starts_on_a_lane_whose_share_is_smaller_than_it() -> None:
    scheduler = Scheduler(2, 8, max_waiting=10, max_start_tokens=100)
    scheduler.submit(Sequence(1, num_rows=5))
    assert scheduler.has_work(0)
    assert scheduler.plan(0, 0.0).num_rows == 5
    scheduler.submit(Sequence(1, num_rows=5))
    assert not scheduler.plan(0, 0.0).starts
    assert len(scheduler.plan(1, 0.0).starts) == 1


def test_rows_and_not_sequences_are_what_may_wait() -> None:
    scheduler = Scheduler(1, 4, max_waiting=2, max_start_tokens=100)
    scheduler.submit(Sequence(1, num_rows=4))
    scheduler.plan(0, 0.0)
    scheduler.submit(Sequence(1, num_rows=2))
    for num_rows in (1, 3):
        with pytest.raises(QueueFullError):
            scheduler.submit(Sequence(1, num_rows=num_rows))
