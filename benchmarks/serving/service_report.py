"""How services stood up to rising rates: the verdicts, the tables and the curve of the service benchmark."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import describe_machine, print_table, write_json, write_plot
from benchmarks.serving.load import Load, Service
from benchmarks.serving.served_share import ServedShare

__all__ = [
    "LATENCY_FACTOR",
    "Race",
    "limit_rows",
    "load_rows",
    "plot",
    "report",
    "share_rows",
    "summary_rows",
]

LATENCY_FACTOR: Final = 5.0
LIMITS_S: Final = (0.025, 0.05, 0.1)
"""Latencies that p99 is to stay under, the same for all."""
_OVERLOADED_S: Final = 0.25
_MAX_OVERLOADS: Final = 2


@dataclasses.dataclass
class Race:
    """A service and how it did."""

    service: Service
    unloaded_s: float
    equal_share: float  # of its answers that are PyTorch's in fp32
    loads: dict[float, list[Load]] = dataclasses.field(default_factory=dict)  # by rate, a load a round

    def percentile(self, rate: float, share: float) -> float:
        return statistics.median(load.percentile(share) for load in self.loads[rate])

    def throughput(self, rate: float) -> float:
        return statistics.median(load.throughput for load in self.loads[rate])

    @property
    def bar_s(self) -> float:
        """The latency that its p99 may not reach."""
        return LATENCY_FACTOR * self.unloaded_s

    def holds(self, rate: float, bar_s: float | None = None) -> bool:
        """Whether no call failed and p99 is under `bar_s`, or its own bar."""
        failed = any(load.num_failed for load in self.loads[rate])
        return not failed and self.percentile(rate, 0.99) < (bar_s or self.bar_s)

    @property
    def is_over(self) -> bool:
        """Whether it has left the race: more comes than it can answer."""
        last = list(self.loads)[-_MAX_OVERLOADS:]
        return len(last) == _MAX_OVERLOADS and not any(self.holds(rate, _OVERLOADED_S) for rate in last)

    def highest_rate(self, bar_s: float | None = None) -> float | None:
        """The highest rate that it holds, with all lower ones."""
        held = None
        for rate in self.loads:
            if not self.holds(rate, bar_s):
                break
            held = rate
        return held


def load_rows(races: Sequence[Race]) -> Iterator[list[str]]:
    for race in races:
        for rate in race.loads:
            milliseconds = [1e3 * race.percentile(rate, share) for share in (0.5, 0.95, 0.99)]
            yield [
                race.service.name,
                f"{rate:,.0f}",
                f"{race.throughput(rate):,.1f}",
                *(f"{one:,.1f}" for one in milliseconds),
                "yes" if race.holds(rate) else "no",
            ]


def summary_rows(races: Sequence[Race]) -> Iterator[list[str]]:
    """Highest rates held: by its own bar and, as a slow service has a high one, by the lowest bar of all."""
    lowest_s = min(race.bar_s for race in races)
    for race in races:
        held, held_low = race.highest_rate(), race.highest_rate(lowest_s)
        yield [
            race.service.name,
            f"{race.equal_share:.1%}",
            f"{1e3 * race.unloaded_s:.1f}",
            f"{held:,.0f}" if held else "none",
            f"{race.throughput(held):,.1f}" if held else "–",
            f"{held_low:,.0f}" if held_low else "none",
            f"{max(map(race.throughput, race.loads)):,.1f}",
        ]


def limit_rows(races: Sequence[Race]) -> Iterator[list[str]]:
    """For each limit the highest rate of every service, and the first one's as a multiple of the others'."""
    for limit_s in LIMITS_S:
        first, *others = rates = [race.highest_rate(limit_s) for race in races]
        yield [
            f"{1e3 * limit_s:.0f}",
            *(f"{rate:,.0f}" if rate else "none" for rate in rates),
            *(f"{first / other:.2f}" if first and other else "–" for other in others),
        ]


def plot(races: Sequence[Race], path: Path) -> None:
    """p50 and p99 over the rate, and each service's bar."""
    from matplotlib import figure  # noqa: PLC0415  only where a plot is asked for

    drawing = figure.Figure(figsize=(8, 5), layout="constrained")
    axes = drawing.subplots()
    for race in races:
        rates = list(race.loads)
        values = {share: [1e3 * race.percentile(rate, share) for rate in rates] for share in (0.5, 0.99)}
        [line] = axes.plot(rates, values[0.99], marker="o", label=f"{race.service.name}, p99")
        axes.plot(
            rates, values[0.5], color=line.get_color(), linestyle="--", label=f"{race.service.name}, p50"
        )
        bar = 1e3 * race.bar_s
        axes.axhline(bar, color=line.get_color(), linestyle=":", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="requests a second", ylabel="latency, ms")
    axes.set_title(f"dotted: {LATENCY_FACTOR:g} times the latency without load")
    axes.legend()
    write_plot(path, drawing)


def share_rows(shares: Sequence[ServedShare]) -> Iterator[list[str]]:
    for one in shares:
        served, in_process = statistics.median(one.served), statistics.median(one.in_process)
        yield [one.name, f"{served:,.0f}", f"{in_process:,.0f}", f"{one.share:.0%}"]


def report(
    races: Sequence[Race],
    shares: Sequence[ServedShare],
    precision: str,
    effort: Mapping[str, Any],
    json_path: Path | None,
) -> None:
    """Print everything, and write it where `--json` says."""
    machine = describe_machine()
    columns = ["", "rate", "answers/s", "p50 ms", "p95 ms", "p99 ms", "held"]
    title = f"{precision}, {effort['rounds']} rounds of {effort['duration_s']:g} s: medians over the rounds"
    print_table(title, columns, list(load_rows(races)), machine)
    columns = [
        "",
        "PyTorch's answers",
        "unloaded ms",
        "highest rate held",
        "answers/s there",
        "most answers/s",
    ]
    title = (
        f"Highest rate with p99 under {LATENCY_FACTOR:g} times its latency without load, or the fastest one's"
    )
    print_table(title, columns, list(summary_rows(races)), machine)
    names = [race.service.name for race in races]
    columns = ["p99 under, ms", *names, *(f"times {name}" for name in names[1:])]
    print_table("Highest rate at the same p99", columns, list(limit_rows(races)), machine)
    columns = ["", "served answers/s", "in process", "share"]
    print_table(
        "dragoman: behind gRPC, callers on the same cores", columns, list(share_rows(shares)), machine
    )
    write_json(
        json_path,
        {
            "benchmark": "service",
            "machine": machine,
            "precision": precision,
            "effort": effort,
            "served_shares": [{**dataclasses.asdict(one), "share": one.share} for one in shares],
            "services": [figures_of(race, min(one.bar_s for one in races)) for race in races],
        },
    )


def figures_of(race: Race, lowest_s: float) -> dict[str, Any]:
    return {
        "name": race.service.name,
        "equal_share": race.equal_share,
        "unloaded_s": race.unloaded_s,
        "highest_rate": race.highest_rate(),
        "highest_rate_by_lowest_bar": race.highest_rate(lowest_s),
        "highest_rate_by_limit_s": {str(limit_s): race.highest_rate(limit_s) for limit_s in LIMITS_S},
        "loads": [
            {
                "rate": rate,
                "throughput": load.throughput,
                "num_failed": load.num_failed,
                **{f"p{round(100 * share)}_s": load.percentile(share) for share in (0.5, 0.95, 0.99)},
            }
            for rate, loads in race.loads.items()
            for load in loads
        ],
    }
