"""Kubernetes' HorizontalPodAutoscaler, as KEDA drives it, second by second. Pure: times and metrics are handed in.

Sources: the algorithm (https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details),
`behavior` (#configurable-scaling-behavior), and external metrics of type AverageValue, whose sum is divided by the
target and compared with the present number of pods within a tolerance of 0.1.
"""

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

__all__ = ["SYNC_PERIOD_S", "TOLERANCE", "Autoscaler", "Policy", "Rules"]

SYNC_PERIOD_S = 15
"""How often the controller decides (`--horizontal-pod-autoscaler-sync-period`)."""
TOLERANCE = 0.1
"""By how much a metric may be off its target without effect (`--horizontal-pod-autoscaler-tolerance`)."""

_BOUND: Final = re.compile(r"\bclamp_max\(.*,\s*([0-9.]+)\s*\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Policy:
    """How far the number of pods may go within `period_s`: by `pods`, or by `percent` of what it was; one of both."""

    period_s: int
    pods: int | None = None
    percent: int | None = None

    def most(self, before: int) -> int:
        """Pods that there may be at the period's end, if there were so many at its start."""
        return before + self._reach(before)

    def least(self, before: int) -> int:
        """Pods that there have to be at the period's end."""
        return before - self._reach(before)

    def _reach(self, before: int) -> int:
        return self.pods if self.pods is not None else math.ceil(before * (self.percent or 0) / 100)


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of an autoscaler.

    Attributes:
        targets: by metric: its target for each pod.
        bounds: by metric: the most that one pod counts for, where there is a bound (`clamp_max` of the query).
        up, down: policies of a direction; the one that reaches farthest counts.
        up_window_s, down_window_s: stabilization windows.
    """

    min_pods: int
    max_pods: int
    targets: Mapping[str, float]
    up: Sequence[Policy]
    down: Sequence[Policy]
    up_window_s: int
    down_window_s: int
    bounds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_scaled_object(cls, manifest: Mapping[str, Any]) -> Self:
        """Those of a KEDA ScaledObject; its triggers' names are the metrics."""
        spec = manifest["spec"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        up, down = behavior["scaleUp"], behavior["scaleDown"]
        return cls(
            min_pods=spec["minReplicaCount"],
            max_pods=spec["maxReplicaCount"],
            targets={each["name"]: float(each["metadata"]["threshold"]) for each in spec["triggers"]},
            up=_policies(up),
            down=_policies(down),
            up_window_s=up["stabilizationWindowSeconds"],
            down_window_s=down["stabilizationWindowSeconds"],
            bounds={
                each["name"]: float(found[1])
                for each in spec["triggers"]
                if (found := _BOUND.search(each["metadata"]["query"]))
            },
        )

    def of_pod(self, metric: str, value: float) -> float:
        """What a pod counts for in the sum over pods."""
        return min(value, self.bounds.get(metric, math.inf))


def _policies(direction: Mapping[str, Any]) -> list[Policy]:
    return [
        Policy(
            each["periodSeconds"],
            pods=each["value"] if each["type"] == "Pods" else None,
            percent=each["value"] if each["type"] == "Percent" else None,
        )
        for each in direction["policies"]
    ]


@dataclass
class Autoscaler:
    """Decides how many pods there should be.

    Attributes:
        num_pods: wanted now.
    """

    rules: Rules
    num_pods: int
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now_s: float, sums: Mapping[str, float]) -> int:
        """The number of pods wanted from now on, by the sums of the metrics over all pods."""
        rules, now = self.rules, self.num_pods
        wanted = max(_wanted(sums[name], target, now) for name, target in rules.targets.items())
        wanted = min(max(wanted, rules.min_pods), rules.max_pods)
        wanted = self._stabilized(now_s, wanted)
        if wanted > now:
            wanted = min(wanted, max(each.most(self._before(now_s, each)) for each in rules.up))
        elif wanted < now:
            wanted = max(wanted, min(each.least(self._before(now_s, each)) for each in rules.down))
        wanted = min(max(wanted, rules.min_pods), rules.max_pods)
        if wanted != now:
            self._changes.append((now_s, wanted - now))
        self.num_pods = wanted
        return wanted

    def _before(self, now_s: float, policy: Policy) -> int:
        """The number of pods at the start of the policy's period."""
        return self.num_pods - sum(change for at_s, change in self._changes if at_s > now_s - policy.period_s)

    def _stabilized(self, now_s: float, wanted: int) -> int:
        """The least that was wanted in the window where more pods are, the most where fewer are."""
        self._recommended.append((now_s, wanted))
        longest_s = max(self.rules.up_window_s, self.rules.down_window_s)
        while self._recommended[0][0] < now_s - longest_s:
            self._recommended.popleft()

        def within(window_s: float) -> list[int]:
            return [each for at_s, each in self._recommended if at_s >= now_s - window_s]

        least = min([wanted, *within(self.rules.up_window_s)])
        most = max([wanted, *within(self.rules.down_window_s)])
        if self.num_pods < least:
            return least
        return min(self.num_pods, most)


def _wanted(total: float, target: float, num_pods: int) -> int:
    """Pods by one metric."""
    if abs(total / (target * num_pods) - 1.0) <= TOLERANCE:
        return num_pods
    return math.ceil(total / target - 1e-9)
