"""The scheduler of a lane against its promises, over random histories."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.server.engine.scheduler import Call, Departure, Plan, Scheduler, Sequence


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
@given(st.data(), st.integers(1, 5))
def test_every_sequence_gets_one_outcome_and_rows_stay_dense(data: st.DataObject, num_slots: int) -> None:
    num_reserved = data.draw(st.integers(0, 2))
    scheduler = Scheduler(
        num_slots,
        reserved_rows=num_reserved,
        max_step_cost=8,
        max_start_tokens=20,
        max_start_interval=data.draw(st.integers(1, 4)),
        encode_together=data.draw(st.integers(1, 4)),
    )
    calls = [Call() for _ in range(3)]
    lane = Rows()
    accepted: list[Sequence] = []
    outcomes: dict[Sequence, str] = {}

    def settle(sequence: Sequence, outcome: str) -> None:
        assert sequence not in outcomes, "settled twice"
        outcomes[sequence] = outcome

    def step(now: float) -> None:
        plan = scheduler.plan(now)
        for sequence, departure in plan.dropped:
            settle(sequence, departure.name)
        lane.carry_out(plan)
        assert all(sequence.waiting and not sequence.is_encoded for sequence in plan.ahead)
        assert not plan.ahead or plan.starts
        for sequence in plan.ahead:
            sequence.is_encoded = data.draw(st.booleans())
        assert len(lane.rows) <= num_slots + num_reserved
        for sequence, _ in plan.starts:
            earlier = accepted[: accepted.index(sequence)]
            assert not any(each.waiting and each.call is sequence.call for each in earlier), "out of order"

    for now in range(data.draw(st.integers(1, 40))):
        is_open = [each for each in accepted if each not in outcomes]
        running = [each for each in dict.fromkeys(lane.rows) if not each.finished]
        match data.draw(st.sampled_from(["submit", "submit", "cancel", "step", "step", "finish", "evict"])):
            case "submit":
                deadline = data.draw(st.none() | st.integers(now + 1, now + 10))
                num_rows = data.draw(st.integers(1, num_slots))
                call = data.draw(st.sampled_from([*calls, Call()]))
                cost = data.draw(st.sampled_from([0, 0, 1, 3, 9]))
                sequence = Sequence(data.draw(st.integers(1, 30)), deadline, num_rows, call, cost)
                sequence.is_small = data.draw(st.booleans())
                scheduler.submit(sequence)
                accepted.append(sequence)
            case "cancel" if is_open:
                if scheduler.cancel(victim := data.draw(st.sampled_from(is_open))):
                    settle(victim, "CANCELLED")
            case "finish" if running:
                ended = data.draw(st.sampled_from(running))
                scheduler.finish(ended)
                settle(ended, "FINISHED")
            case "evict" if data.draw(st.booleans()):
                assert scheduler.evict() == running
                lane.rows.clear()
                for sequence in running:
                    settle(sequence, "EVICTED")
            case "step":
                step(now)
        in_rows = [each for each in lane.rows if not each.finished]
        assert scheduler.num_used_rows == len(in_rows)
        waiting = [each for each in accepted if each not in outcomes and each not in in_rows]
        assert scheduler.num_waiting_rows == sum(each.num_rows for each in waiting)
        assert scheduler.has_work == bool(lane.rows or waiting)
        assert all(each.is_small for each in in_rows if each.is_reserved)
        for most_rows, most_cost, is_reserved in ((num_slots, 8, False), (num_reserved, 2, True)):
            kind = [each for each in dict.fromkeys(in_rows) if each.is_reserved is is_reserved]
            assert sum(each.num_rows for each in kind) <= most_rows
            costs = [each.cost for each in kind]
            assert sum(costs) <= most_cost or sum(cost > 0 for cost in costs) == 1

    for _ in range(200):  # without deadlines or cancellations everything now runs to its end
        step(now=-1.0)
        for sequence in dict.fromkeys(lane.rows):
            scheduler.finish(sequence)
            settle(sequence, "FINISHED")
        if len(outcomes) == len(accepted):
            break
    assert len(outcomes) == len(accepted), "one waits for ever"
    step(now=-1.0)
    assert not scheduler.has_work


def test_first_come_first_served() -> None:
    scheduler = Scheduler(2, max_start_tokens=100)
    sequences = [Sequence(5) for _ in range(4)]
    for sequence in sequences:
        scheduler.submit(sequence)
    assert [s for s, _ in scheduler.plan(0.0).starts] == sequences[:2]
    scheduler.finish(sequences[0])
    plan = scheduler.plan(0.0)
    assert plan.starts == [(sequences[2], [0])], (
        "the freed row goes to the next in line, before the next step"
    )
    assert plan.num_rows == 2


def test_a_full_lane_starts_several_at_once() -> None:
    scheduler = Scheduler(32, max_start_interval=4)
    for _ in range(8):
        scheduler.submit(Sequence(5))
    assert len(scheduler.plan(0.0).starts) == 8, "nobody is held up"
    num_starts = []
    for _ in range(8):
        scheduler.submit(Sequence(5))
        num_starts.append(len(scheduler.plan(0.0).starts))
    assert num_starts == [0, 0, 0, 4, 0, 0, 0, 4]


def test_steps_taken_in_one_call_count() -> None:
    scheduler = Scheduler(32, max_start_interval=4)
    for _ in range(8):
        scheduler.submit(Sequence(5))
    scheduler.plan(0.0)
    scheduler.submit(Sequence(5))
    assert len(scheduler.plan(0.0, num_steps_taken=3).starts) == 0
    assert len(scheduler.plan(0.0, num_steps_taken=1).starts) == 1
    scheduler.submit(Sequence(5))
    assert len(scheduler.plan(0.0, num_steps_taken=4).starts) == 1


def test_a_lane_counts_searches_not_their_rows() -> None:
    """Three searches of five beams have fifteen rows, but end as seldom as three rows without."""
    scheduler = Scheduler(20, max_start_interval=4)
    for _ in range(3):
        scheduler.submit(Sequence(5, num_rows=5))
    assert len(scheduler.plan(0.0).starts) == 3
    scheduler.submit(Sequence(5, num_rows=5))
    assert len(scheduler.plan(0.0).starts) == 1


def test_what_waits_is_encoded_with_what_starts_and_then_starts_at_once() -> None:
    scheduler = Scheduler(16, max_start_interval=4, encode_together=5)
    sequences = [Sequence(5, num_rows=2) for _ in range(20)]
    for sequence in sequences:
        scheduler.submit(sequence)
    plan = scheduler.plan(0.0)
    assert [sequence for sequence, _ in plan.starts] == sequences[:8]
    assert plan.ahead == [], "more than five are encoded already"
    started, ahead = [], []
    for step in range(6):
        scheduler.finish(sequences[step])
        plan = scheduler.plan(0.0)
        started.append([sequences.index(sequence) for sequence, _ in plan.starts])
        ahead.append([sequences.index(sequence) for sequence in plan.ahead])
        for sequence in plan.ahead:
            sequence.is_encoded = True
    assert started == [[], [], [8, 9, 10], [11], [12], [13]]
    assert ahead == [[], [], [11, 12], [], [], [14, 15, 16, 17]]


def test_a_lane_with_few_rows_starts_at_once() -> None:
    scheduler = Scheduler(32, max_start_interval=4)
    for _ in range(3):
        scheduler.submit(Sequence(5))
        assert len(scheduler.plan(0.0).starts) == 1


def test_long_inputs_do_not_hold_up_running_rows() -> None:
    scheduler = Scheduler(8, max_start_tokens=100)
    for num_tokens in (500, 60, 60, 30):
        scheduler.submit(Sequence(num_tokens))
    assert [len(scheduler.plan(0.0).starts) for _ in range(3)] == [1, 1, 2]


def test_the_last_row_fills_a_hole_when_none_waits() -> None:
    scheduler = Scheduler(4, max_start_tokens=100)
    sequences = [Sequence(1) for _ in range(4)]
    for sequence in sequences:
        scheduler.submit(sequence)
    scheduler.plan(0.0)
    scheduler.finish(sequences[1])
    plan = scheduler.plan(0.0)
    assert [(m.sequence, m.source, m.target) for m in plan.moves] == [(sequences[3], 3, 1)]
    assert plan.num_rows == 3


def test_a_cancelled_running_row_is_free_at_the_next_plan() -> None:
    scheduler = Scheduler(2, max_start_tokens=100)
    running, neighbour, waiting = Sequence(1), Sequence(1), Sequence(1)
    for sequence in (running, neighbour, waiting):
        scheduler.submit(sequence)
    scheduler.plan(0.0)
    assert not scheduler.cancel(running)
    plan = scheduler.plan(0.0)
    assert plan.dropped == [(running, Departure.CANCELLED)]
    assert plan.starts == [(waiting, [0])]


def test_expired_sequences_never_reach_a_row() -> None:
    scheduler = Scheduler(1, max_start_tokens=100)
    running, late, patient = Sequence(1, deadline_s=100.0), Sequence(1, deadline_s=5.0), Sequence(1)
    for sequence in (running, late, patient):
        scheduler.submit(sequence)
    scheduler.plan(0.0)
    assert scheduler.plan(5.0).dropped == [(late, Departure.EXPIRED)]
    plan = scheduler.plan(100.0)
    assert plan.dropped == [(running, Departure.EXPIRED)]
    assert plan.starts == [(patient, [0])]


def test_far_deadlines_of_answered_sequences_do_not_pile_up() -> None:
    scheduler = Scheduler(4, max_start_tokens=100)
    for _ in range(1000):
        sequence = Sequence(1, deadline_s=1e9)
        scheduler.submit(sequence)
        scheduler.plan(0.0)
        scheduler.finish(sequence)
    assert len(scheduler._queue._deadlines) < 200


def test_a_beam_gets_all_its_rows_at_once() -> None:
    scheduler = Scheduler(4)
    call = Call()
    beams = [Sequence(1, num_rows=3, call=call), Sequence(1, num_rows=4, call=call)]
    after = Sequence(1, call=call)
    scheduler.submit(*beams, after)
    assert scheduler.plan(0.0).starts == [(beams[0], [0, 1, 2])], "a call's sequences keep their order"
    scheduler.finish(beams[0])
    plan = scheduler.plan(0.0)
    assert (plan.starts, plan.num_rows) == ([(beams[1], [0, 1, 2, 3])], 4)
    assert scheduler.num_used_rows == 4
    assert not scheduler.plan(0.0).starts
    scheduler.finish(beams[1])
    assert scheduler.plan(0.0).starts == [(after, [0])]


def test_a_search_that_lacks_rows_is_overtaken_for_a_while() -> None:
    """One long row, a search that needs all rows first in line, many single rows behind it: no row stays idle."""
    scheduler = Scheduler(32)
    scheduler.submit(long := Sequence(1))
    scheduler.plan(0.0)
    scheduler.submit(search := Sequence(1, num_rows=32))
    for _ in range(200):
        scheduler.submit(Sequence(1))
    num_started = []
    for _ in range(4):
        starts = [sequence for sequence, _ in scheduler.plan(0.0).starts]
        num_started.append(len(starts))
        for sequence in starts:
            scheduler.finish(sequence)
    assert num_started == [31, 31, 2, 0], "two rows for each that it needs, then they wait for it"
    scheduler.finish(long)
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == [search]
    scheduler.finish(search)
    assert len(scheduler.plan(0.0).starts) == 32


def test_a_call_that_has_overtaken_much_overtakes_no_more() -> None:
    """Many searches of one call and many single rows of another: what overtakes pays with its later turns."""
    scheduler = Scheduler(4)
    searches, singles = Call(), Call()
    scheduler.submit(*(Sequence(1, num_rows=3, call=searches) for _ in range(60)))
    scheduler.submit(*(Sequence(1, call=singles) for _ in range(400)))
    num_rows = dict.fromkeys((searches, singles), 0)
    running: list[Sequence] = []
    for _ in range(120):
        running += [sequence for sequence, _ in scheduler.plan(0.0).starts]
        scheduler.finish(running[0])
        num_rows[running[0].call] += running[0].num_rows
        del running[0]
        assert abs(num_rows[searches] - num_rows[singles]) <= 2 * 3 + 3 + 4


def test_a_small_one_uses_no_rows_that_a_search_has_waited_for_long_enough() -> None:
    scheduler = Scheduler(4, reserved_rows=1)
    scheduler.submit(Sequence(1))
    scheduler.plan(0.0)
    scheduler.submit(search := Sequence(1, num_rows=4))
    search.num_overtaking_rows = 8
    small = [Sequence(1) for _ in range(2)]
    for sequence in small:
        sequence.is_small = True
        scheduler.submit(sequence)
    assert [sequence for sequence, _ in scheduler.plan(0.0).starts] == small[:1]
    assert small[0].is_reserved
