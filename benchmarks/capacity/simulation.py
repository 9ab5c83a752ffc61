"""Traffic, pods and their autoscaler, second by second.

A pod is what was measured of one: how many calls a second it answers with so many in it. Calls are numbers here, not
objects: in each second, what came and what waits is spread over the pods that are ready; each answers as many as it
can; what would wait for too much of its time is refused, as the server does it (`server/requests/admission.py`).
"""

import functools
import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from benchmarks.capacity.autoscaler import SYNC_PERIOD_S, Autoscaler, Rules

from dragoman.server.requests.admission import MAX_SHARE

__all__ = ["PODS_EVERY_S", "TRAFFIC", "Cluster", "Outcome", "PodSpeed", "simulate"]

PODS_EVERY_S: Final = 300

Arrivals = npt.NDArray[np.float64]
"""Calls that come, by second."""

_SCRAPE_S: Final = 15
"""Prometheus' interval: what the autoscaler reads is up to so old."""


@dataclass(frozen=True)
class PodSpeed:
    """What a pod does with a number of calls in it at one time.

    Attributes:
        in_flight: numbers of calls, growing.
        calls: answers a second with each of them.
        num_slots: sequences that are decoded at one time; what is beyond waits.
        start_s: from the start of its process until it serves.
    """

    in_flight: Sequence[float]
    calls: Sequence[float]
    num_slots: int
    start_s: float

    @property
    def most(self) -> float:
        """Calls a second at most."""
        return max(self.calls)

    def in_flight_at(self, calls: float) -> float:
        """Calls in the pod while it answers so many a second; all slots from where it can answer no more on."""
        if calls >= self.most:
            return float(self.num_slots)
        rates, numbers = self._curve
        above = max(1, bisect_left(rates, calls))
        share = (calls - rates[above - 1]) / (rates[above] - rates[above - 1])
        return numbers[above - 1] + share * (numbers[above] - numbers[above - 1])

    @functools.cached_property
    def _curve(self) -> tuple[list[float], list[float]]:
        """Answers a second, growing, and the calls in the pod at each."""
        points = {0.0: 0.0}
        for number, calls in zip(self.in_flight, self.calls, strict=True):
            if calls > max(points):
                points[calls] = float(number)
        return list(points), list(points.values())


@dataclass(frozen=True)
class Cluster:
    """What is around the pods.

    Attributes:
        place_s: from the wish for a pod until its process starts: node, image, volume.
        probe_s: interval of the probe that lets a pod take calls.
        connection_age_s: clients find new pods when their connection has got so old; 0: a balancer finds them at once.
        deadline_s: of each call.
    """

    place_s: float = 10.0
    probe_s: float = 2.0
    connection_age_s: float = 45.0
    deadline_s: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        refused: share of the calls.
        catch_up_s: from the first refusal or wait until nothing waits any more, at its longest.
        pod_hours: of all pods, from their process's start on.
        least_pod_hours: of as many pods as the traffic needs at each moment, at their most.
        changes: times that the number of pods turned from growing to shrinking or back, an hour.
        most_pods: at one time.
        pods: their number, every `PODS_EVERY_S`.
    """

    refused: float
    catch_up_s: float
    pod_hours: float
    least_pod_hours: float
    changes: float
    most_pods: int
    pods: Sequence[int]


@dataclass
class _Pod:
    serves_from_s: float
    waiting: float = 0.0

    def weight(self, now_s: float, age_s: float) -> float:
        """Its share of the calls, beside 1 for a pod that all clients have found."""
        served_s = now_s - self.serves_from_s
        return 0.0 if served_s < 0 else 1.0 if age_s <= 0 else min(1.0, (served_s + 1) / age_s)


def simulate(arrivals: Arrivals, speed: PodSpeed, rules: Rules, cluster: Cluster) -> Outcome:
    """Have `arrivals[second]` calls come; the first second finds pods that fit it."""
    num_pods = min(max(rules.min_pods, math.ceil(arrivals[0] / speed.most)), rules.max_pods)
    pods = [_Pod(-cluster.connection_age_s) for _ in range(num_pods)]
    autoscaler = Autoscaler(rules, num_pods)
    starts_s = cluster.place_s + speed.start_s + cluster.probe_s
    most_waiting = MAX_SHARE * cluster.deadline_s * speed.most
    refused = pod_seconds = 0.0
    late_since_s: int | None = None
    catch_up_s = 0
    most_pods = num_pods
    directions: list[int] = []
    pods_over_time: list[int] = []
    scraped = dict.fromkeys(rules.targets, 0.0)
    for second, number in enumerate(arrivals):
        weights = [pod.weight(second, cluster.connection_age_s) for pod in pods]
        total = sum(weights)
        waiting = second_refused = 0.0
        now = dict.fromkeys(rules.targets, 0.0)
        for pod, weight in zip(pods, weights, strict=True):
            offered = pod.waiting + (number * weight / total if total else 0.0)
            answered = min(offered, speed.most)
            pod.waiting = min(offered - answered, most_waiting)
            second_refused += offered - answered - pod.waiting
            waiting += pod.waiting
            in_flight = speed.in_flight_at(speed.most if pod.waiting else answered)
            for name, number_of_calls in (("utilization", in_flight + pod.waiting), ("waiting", pod.waiting)):
                now[name] += rules.of_pod(name, number_of_calls / speed.num_slots)
        refused += second_refused if total else number
        if waiting or second_refused:
            late_since_s = second if late_since_s is None else late_since_s
            catch_up_s = max(catch_up_s, second + 1 - late_since_s)
        else:
            late_since_s = None
        if second % _SCRAPE_S == 0:
            scraped = now
        if second % SYNC_PERIOD_S == SYNC_PERIOD_S - 1:
            wanted = autoscaler.decide(second, scraped)
            if wanted > len(pods):
                directions.append(1)
                pods += [_Pod(second + starts_s) for _ in range(wanted - len(pods))]
            elif wanted < len(pods):
                directions.append(-1)
                del pods[wanted:]
        if second % PODS_EVERY_S == 0:
            pods_over_time.append(len(pods))
        most_pods = max(most_pods, len(pods))
        pod_seconds += sum(second >= pod.serves_from_s - starts_s + cluster.place_s for pod in pods)
    hours = len(arrivals) / 3600
    turns = sum(one != other for one, other in itertools.pairwise(directions))
    return Outcome(
        refused=refused / float(arrivals.sum()),
        catch_up_s=catch_up_s,
        pod_hours=pod_seconds / 3600,
        least_pod_hours=float(np.maximum(arrivals / speed.most, 1.0).sum()) / 3600,
        changes=turns / hours,
        most_pods=most_pods,
        pods=pods_over_time,
    )


def _day(generator: np.random.Generator, peak: float) -> Arrivals:
    """24 hours: a tenth of the peak at night, all of it in the afternoon, and a tenth more or less for minutes."""
    seconds = np.arange(86_400)
    curve = 0.1 + 0.9 * (0.5 - 0.5 * np.cos(2 * np.pi * (seconds / 86_400 - 0.1))) ** 2
    minutes = generator.normal(1.0, 0.1, 86_400 // 60 + 1).clip(0.7, 1.3)
    return np.asarray(generator.poisson(peak * curve * minutes[seconds // 60]), dtype=np.float64)


def _step(generator: np.random.Generator, peak: float) -> Arrivals:
    """An hour: from a quarter of the peak to all of it within a second, at the tenth minute."""
    seconds = np.arange(3600)
    return np.asarray(generator.poisson(np.where(seconds < 600, 0.25 * peak, peak)), dtype=np.float64)


def _spike(generator: np.random.Generator, peak: float) -> Arrivals:
    """An hour at a quarter of the peak, and all of it for one minute."""
    seconds = np.arange(3600)
    is_spike = (seconds >= 600) & (seconds < 660)
    return np.asarray(generator.poisson(np.where(is_spike, peak, 0.25 * peak)), dtype=np.float64)


TRAFFIC: Final[dict[str, Callable[[np.random.Generator, float], Arrivals]]] = {
    "day": _day,
    "step": _step,
    "spike": _spike,
}
"""Calls that come in each second, by the peak in calls a second."""
