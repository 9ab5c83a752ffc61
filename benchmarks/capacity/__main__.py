"""How many pods for a rate of calls, and at which share of taken slots to add one.

    python -m benchmarks.capacity --bundle models/captions/1 --json capacity.json   # measures a pod first
    python -m benchmarks.capacity --figures docs/figures/capacity.json              # by what was measured

The autoscaler of deploy/components/autoscaling-keda, with its own settings but for the target, is simulated second by
second: a day, a step to four times the calls, and a minute of four times the calls. Once with the slots that the server
makes by itself, and once with as many as a pod needs for nine tenths of its speed: slots beyond that are taken when the
pod can do no more already, so that their share says too late that a pod is missing.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from benchmarks.capacity.autoscaler import Rules
from benchmarks.capacity.measuring import measured, speed_of
from benchmarks.capacity.simulation import TRAFFIC, Cluster, Outcome, PodSpeed, simulate
from benchmarks.report import add_json_option, argument_parser, describe_machine, print_table, write_json
from rich.console import Console

__all__ = ["TARGETS", "committed_rules", "enough_slots", "main", "outcomes"]

SCALED_OBJECT: Final = (
    Path(__file__).parents[2] / "deploy" / "components" / "autoscaling-keda" / "scaled_object.yaml"
)
TARGETS: Final = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
ENOUGH: Final = 0.9
PEAK_PODS: Final = 6.0
"""The peak of the traffic, in pods that answer as many calls as they can."""


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
            name: {str(target): dataclasses.asdict(each) for target, each in by_target.items()}
            for name, by_target in found.items()
        }
    write_json(given.json, figures)
    return 0


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
        [
            name,
            f"{target:g}{' *' if target == rules.targets['utilization'] else ''}",
            f"{100 * each.refused:.2f} %",
            f"{each.catch_up_s} s",
            f"{each.pod_hours:.1f}",
            f"{each.least_pod_hours:.1f}",
            str(each.most_pods),
            f"{each.changes:.1f}",
        ]
        for name, by_target in found.items()
        for target, each in by_target.items()
    ]
    columns = [
        "traffic",
        "target",
        "refused",
        "until none waits",
        "pod hours",
        "at least",
        "most pods",
        "turns/hour",
    ]
    print_table(f"The autoscaler, pods of {num_slots} slots (* is deployed)", columns, rows, machine)


if __name__ == "__main__":
    sys.exit(main())
