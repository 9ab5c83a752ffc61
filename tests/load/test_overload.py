"""What the overload program makes of how calls ended, and a small run of it."""

import json
from math import inf
from pathlib import Path

from benchmarks.serving.load import End
from tests.load import overload


def test_calls_that_were_accepted_and_given_up_are_infinitely_slow_and_refused_ones_are_left_out() -> None:
    answered = [End(0.0, 0.1, "OK")] * 98
    refused = [End(0.0, 9.0, "RESOURCE_EXHAUSTED")] * 50
    assert overload.p99_of_accepted([*answered, *refused]) == 0.1
    assert overload.p99_of_accepted([*answered, *refused, *[End(0.0, 0.2, "DEADLINE_EXCEEDED")] * 2]) == inf


def test_it_is_over_when_a_second_begins_in_which_all_calls_are_answered_in_time() -> None:
    ends = [End(number / 100, 0.1, "OK") for number in range(1000)]
    assert overload.recovery(ends, 5.0, 0.2) == 0.0
    ends[570] = End(5.7, 0.1, "RESOURCE_EXHAUSTED")
    assert 0.7 < overload.recovery(ends, 5.0, 0.2) < 0.9
    assert overload.recovery([End(end.due_s, 0.3, "OK") for end in ends], 5.0, 0.2) == inf


def test_a_small_overload_ends_each_call_as_answered_refused_or_late(tmp_path: Path) -> None:
    figures = tmp_path / "overload.json"
    arguments = ["--duration", "1", "--after", "1", "--processes", "1", "--slowness", "20", "--lanes", "1"]
    overload.main([*arguments, "--callers", "16", "--json", str(figures)])
    [table] = json.loads(figures.read_text())["tables"]
    [_, *row] = table["rows"][1]
    num_calls, answered, refused, late, other = (int(cell.replace(",", "")) for cell in row[:5])
    assert other == 0
    assert answered > 0
    assert refused > 0
    assert answered + refused + late == num_calls
