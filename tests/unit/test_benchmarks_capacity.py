"""The simulated autoscaler against the examples of Kubernetes' documentation, and pods against arithmetic."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.capacity.__main__ import DEPLOYED, SETTINGS, committed_rules, figures_of, outcomes
from benchmarks.capacity.autoscaler import Autoscaler, Policy, Rules
from benchmarks.capacity.measuring import speed_of
from benchmarks.capacity.simulation import TRAFFIC, Cluster, PodSpeed, simulate

FIGURES = Path(__file__).parents[2] / "docs" / "figures" / "capacity.json"
MAX_REFUSED = 0.001
MAX_TURNS_AN_HOUR = 1.0
MAX_WAIT = 0.5  # of the time for which a call is decoded
LEAST_TARGET, MOST_TARGET = 0.7, 0.8  # the rest is free for what comes until the next pod serves
ANY = 10_000
FREE = Rules(1, ANY, {"load": 100.0}, [Policy(15, pods=ANY)], [Policy(15, pods=ANY)], 0, 0)
SPEED = PodSpeed([1, 4, 16], [100.0, 300.0, 400.0], num_slots=16, start_s=1.0)


@pytest.mark.parametrize(
    ("value", "wanted"), [(200.0, 8), (50.0, 2), (109.0, 4), (91.0, 4), (111.0, 5), (89.0, 4)]
)
def test_pods_follow_the_ratio_of_the_metric_to_its_target(value: float, wanted: int) -> None:
    """https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details."""
    assert Autoscaler(FREE, 4).decide(0.0, {"load": 4 * value}) == wanted


def test_the_policy_that_reaches_farthest_counts() -> None:
    """The documentation's example of `behavior`: 10 % or 4 pods a minute, from 80 pods on."""
    rules = dataclasses.replace(FREE, min_pods=10, down=[Policy(60, pods=4), Policy(60, percent=10)])
    autoscaler = Autoscaler(rules, 80)
    found = [autoscaler.decide(60.0 * minute, {"load": 1.0}) for minute in range(9)]
    assert found == [72, 64, 57, 51, 45, 40, 36, 32, 28]


def test_no_policy_goes_farther_within_its_period() -> None:
    rules = dataclasses.replace(FREE, up=[Policy(30, percent=100)])
    autoscaler = Autoscaler(rules, 2)
    found = [autoscaler.decide(15.0 * turn, {"load": 10_000.0}) for turn in range(6)]
    assert found == [4, 4, 8, 8, 16, 16]


def test_the_most_that_was_wanted_in_the_window_stays() -> None:
    rules = dataclasses.replace(FREE, down_window_s=300)
    autoscaler = Autoscaler(rules, 8)
    loads = {0: 800.0, 60: 300.0, 120: 500.0, 330: 300.0, 435: 300.0}
    assert [autoscaler.decide(at_s, {"load": load}) for at_s, load in loads.items()] == [8, 8, 8, 5, 3]


def test_the_metric_that_wants_most_pods_counts() -> None:
    rules = dataclasses.replace(FREE, targets={"load": 100.0, "waiting": 8.0}, max_pods=20)
    assert Autoscaler(rules, 4).decide(0.0, {"load": 400.0, "waiting": 64.0}) == 8
    assert Autoscaler(rules, 4).decide(0.0, {"load": 400.0, "waiting": 6400.0}) == 20


def test_what_is_deployed_is_read_from_its_manifest() -> None:
    rules = committed_rules()
    assert set(rules.targets) == {"utilization", "waiting"}
    assert rules.bounds == {"utilization": 1.0, "waiting": 2.0}
    assert rules.min_pods < rules.max_pods
    assert rules.up
    assert rules.down


def test_calls_in_a_pod_follow_from_its_speed() -> None:
    found = [SPEED.in_flight_at(calls) for calls in (0.0, 50.0, 200.0, 350.0, 400.0, 1000.0)]
    assert found == [0.0, 0.5, 2.5, 10.0, 16.0, 16.0]


def constant(calls: float, seconds: int = 1200) -> np.ndarray:
    return np.full(seconds, calls)


def test_few_calls_need_the_fewest_pods_and_none_is_refused() -> None:
    outcome = simulate(constant(100.0), SPEED, committed_rules(), Cluster())
    assert (outcome.refused, outcome.catch_up_s, outcome.changes) == (0.0, 0, 0.0)
    assert outcome.most_pods == committed_rules().min_pods
    assert outcome.pod_hours == pytest.approx(outcome.most_pods / 3)


def test_what_no_number_of_pods_can_answer_is_refused() -> None:
    rules = dataclasses.replace(committed_rules(), max_pods=2)
    outcome = simulate(constant(1600.0), SPEED, rules, Cluster())
    assert outcome.refused == pytest.approx(0.5, abs=0.01)
    assert outcome.catch_up_s == 1200


def test_a_step_is_refused_until_new_pods_serve() -> None:
    arrivals = np.concatenate([constant(300.0, 600), constant(1500.0, 1800)])
    cluster = Cluster(place_s=10.0, connection_age_s=0.0)
    slow = simulate(arrivals, SPEED, committed_rules(), dataclasses.replace(cluster, place_s=120.0))
    fast = simulate(arrivals, SPEED, committed_rules(), cluster)
    assert 0 < fast.catch_up_s < slow.catch_up_s
    assert 0 < fast.refused < slow.refused
    assert fast.most_pods >= 4


def test_a_pod_counts_for_no_more_than_its_bound() -> None:
    rules = dataclasses.replace(FREE, max_pods=20, targets={"utilization": 0.5, "waiting": 1.0})
    arrivals = np.concatenate([constant(400.0, 1), constant(1600.0, 30)])  # two decisions
    free = simulate(arrivals, SPEED, rules, Cluster())
    bounds = {"utilization": 1.0, "waiting": 3.0}
    bounded = simulate(arrivals, SPEED, dataclasses.replace(rules, bounds=bounds), Cluster())
    assert free.most_pods == 20
    assert bounded.most_pods == 3, "one pod, of whose queue no more than three slots' worth count"


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(FIGURES.read_text())
    return read


def test_the_deployed_target_has_the_fewest_pods_of_those_that_hold(figures: dict[str, Any]) -> None:
    day = figures["outcomes"][str(figures["pod"]["num_slots"])]["day"]
    hours = {
        float(target): each["pod_hours"]
        for target, each in day.items()
        if LEAST_TARGET <= float(target) <= MOST_TARGET
        and each["refused"] <= MAX_REFUSED
        and each["changes"] <= MAX_TURNS_AN_HOUR
    }
    deployed = committed_rules().targets["utilization"]
    assert deployed in hours
    assert hours[deployed] == min(hours.values())


def test_bounds_and_windows_earn_their_place(figures: dict[str, Any]) -> None:
    """What is deployed turns seldom, and refuses no more than what it is compared with."""
    settings = figures["settings"]
    assert settings.keys() == SETTINGS.keys()
    deployed = settings[DEPLOYED]
    assert deployed["day"]["changes"] <= MAX_TURNS_AN_HOUR
    for by_traffic in settings.values():
        for traffic, other in by_traffic.items():
            assert deployed[traffic]["refused"] <= other["refused"]
        assert deployed["day"]["pod_hours"] <= by_traffic["day"]["pod_hours"]


def test_a_call_waits_half_as_long_as_it_is_decoded(figures: dict[str, Any]) -> None:
    """Little's law for the target of the queue, and for the objective of latency in the rules."""
    speed, rules = speed_of(figures["pod"]), committed_rules()
    decoded_s = speed.num_slots / speed.most
    waiting = rules.targets["waiting"] * speed.num_slots
    assert waiting / speed.most == pytest.approx(MAX_WAIT * decoded_s)
    assert decoded_s + waiting / speed.most < 1, "dragoman:objective_latency:seconds"


def test_committed_figures_are_those_of_the_simulation(
    figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(TRAFFIC, "day")  # takes a second for each target
    deployed = committed_rules().targets["utilization"]
    cluster = Cluster(**figures["cluster"])
    found = outcomes(speed_of(figures["pod"]), committed_rules(), cluster, [deployed])
    committed = figures["outcomes"][str(figures["pod"]["num_slots"])]
    for name, by_target in found.items():
        assert figures_of(by_target[deployed]) == pytest.approx(committed[name][str(deployed)])
        assert figures["settings"][DEPLOYED][name] == committed[name][str(deployed)]
