"""What a lane tells of traced sequences, whatever becomes of them, and that it tells nothing of others."""

import itertools

import pytest
from tests.unit.test_server_worker import LONG, Script, failing, request, run, submit

from dragoman.server.engine import worker
from dragoman.server.engine.api import Cancel, Failed, FailureReason, Finished, Leave, Timeline
from dragoman.server.engine.timelines import MAX_STEPS, Timelines
from dragoman.server.execution.rows import Rows


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Timelines]:
    """The timelines of the lanes that run, each step being one of the graph `decode`."""
    monkeypatch.setattr(Rows, "has_room_for_steps", lambda *_: False)
    made: list[Timelines] = []

    def make() -> Timelines:
        made.append(Timelines())
        return made[-1]

    monkeypatch.setattr(worker, "Timelines", make)
    return made


def timelines(script: Script) -> dict[int, Timeline]:
    """By sequence; each one comes once, just before the sequence's end."""
    events = script.events()
    told = {event.id: event for event in events if isinstance(event, Timeline)}
    for event, after in itertools.pairwise(events):
        if isinstance(event, Timeline):
            assert isinstance(after, Finished | Failed)
            assert after.id == event.id
    assert len(told) == sum(isinstance(event, Timeline) for event in events)
    return told


def test_only_what_is_traced_has_a_timeline(kept: list[Timelines]) -> None:
    script = run(submit(request(1, step_interval=3), request(2), request(3, "90210", step_interval=1)))
    told = timelines(script)
    assert sorted(told) == [1, 3]
    assert sorted(script.finished()) == [1, 2, 3]
    for id_, interval in ((1, 3), (3, 1)):
        timeline = told[id_]
        assert timeline.encoding is not None
        assert timeline.encoding.graph == "encode"
        assert [run.step for run in timeline.steps] == list(range(0, timeline.num_steps, interval))
        runs = [timeline.encoding, *timeline.steps]
        assert all(run.started_s < run.ended_s <= after.started_s for run, after in itertools.pairwise(runs))
        assert timeline.ended_s is not None
        assert timeline.ended_s >= runs[-1].ended_s
    assert told[1].steps[0].num_rows == 3, "rows of all sequences"
    assert not kept[0], "nothing is kept of what has ended"


def test_a_long_sequence_tells_a_bounded_number_of_steps() -> None:
    [timeline] = timelines(run(submit(request(1, parameters=LONG, step_interval=1)))).values()
    assert timeline.num_steps == 81 > MAX_STEPS
    assert [run.step for run in timeline.steps] == list(range(MAX_STEPS))


def test_a_sequence_that_starts_later_has_its_own_encoding_and_steps() -> None:
    told = timelines(
        run(
            submit(request(1, parameters=LONG, step_interval=1)),
            submit(request(2, step_interval=1)),
        )
    )
    first, second = told[1], told[2]
    assert first.encoding is not None
    assert second.encoding is not None
    assert first.encoding.ended_s < second.encoding.started_s
    steps = {run.started_s: run.step for run in first.steps}
    assert [steps[run.started_s] for run in second.steps] == list(range(1, 1 + second.num_steps)), (
        "in the same runs"
    )


@pytest.mark.parametrize("fails_at", [0, 2])
def test_what_fails_says_how_far_it_came(
    monkeypatch: pytest.MonkeyPatch, kept: list[Timelines], fails_at: int
) -> None:
    monkeypatch.setattr(Rows, "decode", failing([False] * fails_at + [True]))
    script = run(submit(request(1, parameters=LONG, step_interval=1)))
    assert script.failed() == {1: FailureReason.ERROR}
    assert timelines(script)[1].num_steps == fails_at
    assert not kept[0]


def test_what_is_cancelled_or_left_is_forgotten(kept: list[Timelines]) -> None:
    script = run(
        submit(request(1, parameters=LONG, step_interval=1), request(2, parameters=LONG, step_interval=1)),
        [("front", Cancel([1]))],
        [("front", Leave())],
        slots_per_lane=1,
    )
    assert script.failed() == {1: FailureReason.CANCELLED}
    assert timelines(script)[1].num_steps in {1, 2}
    assert not kept[0]
