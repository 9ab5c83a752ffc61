"""How many pods for a rate of calls, and at which share of taken slots to add one.

    python -m benchmarks.capacity --bundle models/captions/1 --json capacity.json   # measures a pod first
    python -m benchmarks.capacity --figures docs/figures/capacity.json              # by what was measured

The autoscaler of deploy/components/autoscaling-keda, with its own settings but for the target, is simulated second by
second: a day, a step to four times the calls, and a minute of four times the calls. Once with the slots that the server
makes by itself, and once with as many as a pod needs for nine tenths of its speed: slots beyond that are taken when the
pod can do no more already, so that their share says too late that a pod is missing. Then again with single settings as
they might be instead, to see what each of them is good for.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from benchmarks.capacity.autoscaler import Policy, Rules
from benchmarks.capacity.measuring import measured, speed_of
from benchmarks.capacity.simulation import PODS_EVERY_S, TRAFFIC, Cluster, Outcome, PodSpeed, simulate
from benchmarks.report import add_json_option, argument_parser, describe_machine, print_table, write_json
from rich.console import Console

__all__ = [
    "DEPLOYED",
    "SETTINGS",
    "TARGETS",
    "committed_rules",
    "compared",
    "enough_slots",
    "figures_of",
    "main",
    "outcomes",
]

SCALED_OBJECT: Final = (
    Path(__file__).parents[2] / "deploy" / "components" / "autoscaling-keda" / "scaled_object.yaml"
)
TARGETS: Final = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
ENOUGH: Final = 0.9
PEAK_PODS: Final = 6.0
"""The peak of the traffic, in pods that answer as many calls as they can."""


def _short_window(rules: Rules) -> Rules:
    return dataclasses.replace(rules, down=[Policy(60, pods=1)], down_window_s=300)


def _without_bounds(rules: Rules) -> Rules:
    return dataclasses.replace(rules, bounds={})


DEPLOYED: Final = "as deployed"
SETTINGS: Final[Mapping[str, Callable[[Rules], Rules]]] = {
    DEPLOYED: lambda rules: rules,
    "queue counted without bound": _without_bounds,
    "pods go after 5 min, 1 a min": _short_window,
    "both of these": lambda rules: _short_window(_without_bounds(rules)),
}
"""What is deployed, and what it is compared with."""


def committed_rules() -> Rules:
    """The autoscaler that is deployed."""
    return Rules.of_scaled_object(yaml.safe_load(SCALED_OBJECT.read_text()))


def outcomes(
    speed: PodSpeed, rules: Rules, cluster: Cluster, targets: Sequence[float] = TARGETS, *, seed: int = 0
) -> dict[str, dict[float, Outcome]]:
    """By traffic and target: what comes of it. All targets meet the same calls."""
    found: dict[str, dict[float, Outcome]] = {}
    for name, make in TRAFFIC.items():
        arrivals = make(np.random.default_rng(seed), PEAK_PODS * speed.most)
        found[name] = {
            target: simulate(
                arrivals,
                speed,
                dataclasses.replace(rules, targets={**rules.targets, "utilization": target}),
                cluster,
            )
            for target in targets
        }
    return found


def compared(speed: PodSpeed, cluster: Cluster, *, seed: int = 0) -> dict[str, dict[str, Outcome]]:
    """By `SETTINGS` and traffic: what comes of it."""
    rules = committed_rules()
    target = rules.targets["utilization"]
    return {
        name: {
            traffic: by_target[target]
            for traffic, by_target in outcomes(speed, change(rules), cluster, [target], seed=seed).items()
        }
        for name, change in SETTINGS.items()
    }


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON has it, without the number of pods at each moment."""
    figures = dataclasses.asdict(outcome)
    del figures["pods"]
    return figures


def enough_slots(speed: PodSpeed) -> int:
    """The smallest number of slots that was measured with which a pod reaches `ENOUGH` of its speed."""
    return next(
        int(number)
        for number, calls in zip(speed.in_flight, speed.calls, strict=True)
        if calls >= ENOUGH * speed.most
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argument_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, help="measure a pod that serves this translation bundle")
    source.add_argument("--figures", type=Path, help="figures of a pod, from an earlier --json")
    _add_cluster_options(parser)
    add_json_option(parser)
    given = parser.parse_args(arguments)
    if given.bundle is not None:
        pod = {**measured(given.bundle, Console(stderr=True)), "machine": describe_machine()}
    else:
        pod = json.loads(given.figures.read_text())["pod"]
    cluster = Cluster(given.place_s, given.probe_s, given.connection_age_s, given.deadline_s)
    speed, rules = speed_of(pod), committed_rules()
    _print_pod(pod, speed)
    figures: dict[str, Any] = {"pod": pod, "cluster": dataclasses.asdict(cluster), "outcomes": {}}
    for num_slots in (speed.num_slots, enough_slots(speed)):
        found = outcomes(dataclasses.replace(speed, num_slots=num_slots), rules, cluster)
        _print_outcomes(num_slots, found, rules, pod["machine"])
        figures["outcomes"][str(num_slots)] = {
            name: {str(target): figures_of(each) for target, each in by_target.items()}
            for name, by_target in found.items()
        }
    settings = compared(speed, cluster)
    _print_settings(settings, pod["machine"])
    figures["settings"] = {
        name: {traffic: figures_of(each) for traffic, each in by_traffic.items()}
        for name, by_traffic in settings.items()
    }
    figures["day"] = _day(speed, settings)
    write_json(given.json, figures)
    return 0


def _day(speed: PodSpeed, settings: Mapping[str, Mapping[str, Outcome]]) -> dict[str, Any]:
    """The day as a plot shows it: pods that the calls of each moment need at least, and pods that there are."""
    calls = TRAFFIC["day"](np.random.default_rng(0), PEAK_PODS * speed.most)
    needed = calls.reshape(-1, PODS_EVERY_S).mean(axis=1) / speed.most
    return {
        "seconds_apart": PODS_EVERY_S,
        "needed": [round(float(each), 2) for each in needed],
        "pods": {name: list(by_traffic["day"].pods) for name, by_traffic in settings.items()},
    }


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    default = Cluster()
    parser.add_argument(
        "--place-s", type=float, default=default.place_s, help="from the wish for a pod to its process"
    )
    parser.add_argument(
        "--probe-s", type=float, default=default.probe_s, help="interval of the startup probe"
    )
    parser.add_argument(
        "--connection-age-s", type=float, default=default.connection_age_s, help="server.max_connection_age_s"
    )
    parser.add_argument("--deadline-s", type=float, default=default.deadline_s, help="of each call")


def _print_pod(pod: Mapping[str, Any], speed: PodSpeed) -> None:
    rows = [
        [
            str(number),
            f"{calls:,.0f}",
            f"{calls * pod['tokens_per_call']:,.0f}",
            f"{1000 * number / calls:.1f}",
            f"{calls / speed.most:.2f}",
            f"{min(1.0, number / speed.num_slots):.2f}",
        ]
        for number, calls in zip(speed.in_flight, speed.calls, strict=True)
    ]
    columns = ["calls in it", "calls/s", "tokens/s", "ms a call", "share of its most", "share of slots"]
    print_table(
        f"A pod: {pod['model']}, {pod['precision']}, {speed.num_slots} slots, serves after {speed.start_s:.2f} s",
        columns,
        rows,
        pod["machine"],
    )


def _print_outcomes(
    num_slots: int, found: Mapping[str, Mapping[float, Outcome]], rules: Rules, machine: Mapping[str, Any]
) -> None:
    rows = [
        [name, f"{target:g}{' *' if target == rules.targets['utilization'] else ''}", *_cells(each)]
        for name, by_target in found.items()
        for target, each in by_target.items()
    ]
    title = f"The autoscaler, pods of {num_slots} slots (* is deployed)"
    print_table(title, ["traffic", "target", *_COLUMNS], rows, machine)


def _print_settings(found: Mapping[str, Mapping[str, Outcome]], machine: Mapping[str, Any]) -> None:
    rows = [
        [traffic, name, *_cells(by_traffic[traffic])]
        for traffic in TRAFFIC
        for name, by_traffic in found.items()
    ]
    print_table("The autoscaler with other settings", ["traffic", "settings", *_COLUMNS], rows, machine)


_COLUMNS: Final = ("refused", "until none waits", "pod hours", "at least", "most pods", "turns/hour")


def _cells(outcome: Outcome) -> list[str]:
    return [
        f"{100 * outcome.refused:.3f} %",
        f"{outcome.catch_up_s} s",
        f"{outcome.pod_hours:.1f}",
        f"{outcome.least_pod_hours:.1f}",
        str(outcome.most_pods),
        f"{outcome.changes:.1f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
