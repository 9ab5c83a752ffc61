"""What a front is told of a lane that others use too."""

from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.api import FailureReason, LaneLoad
from dragoman.server.engine.reports import Reports
from dragoman.server.engine.sequence import LaneSequence


def told(reports: Reports[str], num_rows: int) -> list[str]:
    """The fronts that hear of a load of so many rows, some of them waited for."""
    waiting = num_rows // 3
    taken = reports.take(LaneLoad(num_rows - waiting, waiting), is_full=False)
    assert all(report.load.num_rows + report.load.num_waiting_rows == num_rows for _, report in taken)
    return [front for front, _ in taken]


def test_a_front_hears_that_others_leave_a_lane_each_time_that_it_is_half_as_full() -> None:
    reports: Reports[str] = Reports(None)
    sequence = LaneSequence.create((1,), DecodingParameters(max_tokens=1))
    for front in ("ours", "theirs"):
        reports.add_front(front)
    sequence.front = "ours"
    reports.fail(sequence, FailureReason.CANCELLED, "")
    assert told(reports, 40) == ["ours"]
    heard = [num_rows for num_rows in range(39, -1, -1) if told(reports, num_rows)]
    assert heard == [20, 10, 5, 2, 1, 0]
    assert told(reports, 0) == []
    reports.fail(sequence, FailureReason.CANCELLED, "")
    assert told(reports, 40) == ["ours"]
    reports.forget_front("ours")
    assert told(reports, 0) == []
