"""The series of the server process are those of prometheus_client's own collector, read in fewer questions."""

import sys

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from dragoman.server.operations.processes import OwnProcessCollector

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")


def test_names_types_and_values_are_as_every_prometheus_client_has_them() -> None:
    theirs = {family.name: family for family in ProcessCollector(registry=CollectorRegistry()).collect()}
    ours = {family.name: family for family in OwnProcessCollector().collect()}
    assert {name: family.type for name, family in ours.items()} == {
        name: family.type for name, family in theirs.items()
    }
    for name, family in ours.items():
        [mine], [other] = family.samples, theirs[name].samples
        assert mine.name == other.name
        # The process goes on between the two: a few pages, a few files, some milliseconds.
        assert mine.value == pytest.approx(other.value, rel=0.2, abs=3.0), name


def test_the_start_is_the_same_to_the_tick() -> None:
    [theirs] = [
        family.samples[0].value
        for family in ProcessCollector(registry=CollectorRegistry()).collect()
        if family.name == "process_start_time_seconds"
    ]
    [ours] = [
        family.samples[0].value
        for family in OwnProcessCollector().collect()
        if family.name == "process_start_time_seconds"
    ]
    assert ours == pytest.approx(theirs, abs=0.011)
