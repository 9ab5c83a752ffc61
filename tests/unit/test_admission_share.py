"""The rule that admits calls, under simulated overload: no clock but the simulation's."""

import pytest
from benchmarks.admission_share import SCENARIOS, goodput

from dragoman.server.requests.admission import MAX_SHARE

GOODPUT = {
    "short answers, 64 slots": 0.93,
    "the same, 1 to 32 rows a call": 1.0,
    "few slots": 0.95,
    "long answers": 0.95,
    "a slow model, long answers": 0.9,
}
"""Of the peak. Calls of few rows are taken before those of many: of such calls more are answered than of all."""


@pytest.mark.parametrize("name", GOODPUT)
def test_what_is_answered_in_time_in_overload_is_nearly_the_peak(name: str) -> None:
    scenario = next(each for each in SCENARIOS if each.name == name)
    answered, late = goodput(scenario, MAX_SHARE, seed=1, num_calls=3_000)
    assert answered >= GOODPUT[name]
    assert late <= 0.15, "of the calls that were taken"
