"""Answers a second by lanes, and what a call costs each process."""

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import describe_machine, print_table, write_json
from benchmarks.serving.process_tree import ROLES

__all__ = ["EngineReading", "Reading", "ServedReading", "report", "served_rows", "speed_rows"]


@dataclasses.dataclass(frozen=True)
class EngineReading:
    """The engine alone, once.

    Attributes:
        front_s: CPU time an answer of the thread that asks.
        lanes_s: CPU time an answer of all other threads and processes.
    """

    answers_per_s: float
    front_s: float
    lanes_s: float


@dataclasses.dataclass(frozen=True)
class ServedReading:
    """Calls through gRPC, once.

    Attributes:
        cpu_s: CPU time a call by role, that of the generator as "generator".
        pss_bytes: memory by role, under this load.
    """

    calls_per_s: float
    p50_s: float
    p99_s: float
    cpu_s: Mapping[str, float]
    pss_bytes: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Reading:
    """One turn with so many lanes; `served` is by the number of callers."""

    engine: EngineReading
    served: Mapping[int, ServedReading]


def speed_rows(readings: Mapping[int, Sequence[Reading]]) -> Iterator[list[str]]:
    """Lanes; the engine's answers a second; calls a second, p50 and p99 in ms for each number of callers."""
    for lanes, turns in readings.items():
        row = [f"{lanes}", f"{_median(turn.engine.answers_per_s for turn in turns):,.0f}"]
        for callers in turns[0].served:
            served = [turn.served[callers] for turn in turns]
            latencies = (
                f"{1e3 * _median(getattr(one, name) for one in served):.1f}" for name in ("p50_s", "p99_s")
            )
            row += [f"{_median(one.calls_per_s for one in served):,.0f}", ", ".join(latencies)]
        yield row


def served_rows(readings: Mapping[int, Sequence[Reading]]) -> Iterator[list[str]]:
    """Lanes and callers; CPU time a call in us and PSS in MB of each role; CPU time of the generator."""
    for lanes, turns in readings.items():
        for callers in turns[0].served:
            served = [turn.served[callers] for turn in turns]
            row = [f"{lanes}", f"{callers}"]
            for role in (*ROLES, "generator"):
                have = [one.cpu_s[role] for one in served if role in one.cpu_s]
                row.append(f"{1e6 * _median(have):,.0f}" if have else "–")
            for role in ROLES:
                held = [one.pss_bytes[role] for one in served if role in one.pss_bytes]
                row.append(f"{_median(held) / 1e6:,.0f}" if held else "–")
            yield row


def report(readings: Mapping[int, Sequence[Reading]], effort: Mapping[str, Any], path: Path | None) -> None:
    """Print the tables, write the figures to `path`."""
    machine = describe_machine()
    callers = [f"{number} callers" for number in next(iter(readings.values()))[0].served]
    columns = ["lanes", "engine alone", *(name for one in callers for name in (one, "p50, p99 ms"))]
    print_table("Answers a second, graphs that sleep", columns, list(speed_rows(readings)), machine)
    columns = [
        "lanes",
        "callers",
        *(f"{role}, us" for role in (*ROLES, "generator")),
        *(f"{role}, MB" for role in ROLES),
    ]
    print_table("CPU time a call, and memory (PSS)", columns, list(served_rows(readings)), machine)
    write_json(
        path,
        {
            "benchmark": "scaling",
            "machine": machine,
            "effort": effort,
            "readings": {
                str(lanes): [dataclasses.asdict(turn) for turn in turns] for lanes, turns in readings.items()
            },
        },
    )


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)
