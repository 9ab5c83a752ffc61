"""The tables and figures of the engine benchmark."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort
from benchmarks.report import describe_machine, print_table, write_json
from benchmarks.serving.agreement import Agreement
from benchmarks.serving.contest import Standing, ratio
from benchmarks.serving.dragoman_systems import DragomanEngine, DragomanLanes
from benchmarks.serving.limit import BareProducts, workload_operations
from benchmarks.serving.pytorch_system import PyTorchEager
from benchmarks.serving.subject import Subject

__all__ = [
    "Findings",
    "agreement_rows",
    "limit_rows",
    "reference_of",
    "report",
    "speed_rows",
    "write_figures",
]

_OURS: Final = DragomanEngine.name


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that was found out about one model."""

    subject: Subject
    agreements: list[Agreement]
    standings: list[Standing]
    peak_rates: dict[str, float]  # operations a second, by precision


def reference_of(standing: Standing, standings: Sequence[Standing]) -> Standing | None:
    """Dragoman's engine at the same workload and precision, where both were timed."""
    for one in standings:
        if (one.workload, one.system.name, one.system.precision) == (
            standing.workload,
            _OURS,
            standing.system.precision,
        ):
            return one if one.readings and standing.readings and one is not standing else None
    return None


def agreement_rows(found: Findings) -> Iterator[list[str]]:
    for one in found.agreements:
        yield [
            f"{found.subject.name}: {one.system} {one.precision}, {one.decoding}",
            f"{one.num_equal} of {one.num_inputs}",
            f"{one.num_ties}",
            f"{one.max_log_probability_error:.1e}",
        ]


def speed_rows(standings: Sequence[Standing]) -> Iterator[list[str]]:
    """A line a workload, and under it one a system."""
    last = None
    for one in standings:
        if one.workload is not last:
            last = one.workload
            yield [last.name, "", "", "", ""]
        name = f"  {one.system.name} {one.system.precision}"
        if one.readings:
            speeds = [reading.tokens_per_second for reading in one.readings]
            reference = reference_of(one, standings)
            yield [
                name,
                f"{one.median_tokens_per_second:,.0f}",
                f"{min(speeds):,.0f} to {max(speeds):,.0f}",
                str(ratio(reference, one)) if reference else "",
                " ".join(map(str, (one.setting or {}).values())),
            ]
        elif not isinstance(one.system, DragomanLanes | BareProducts):  # those two are for some work only
            yield [name, "–", "", "", ""]


def limit_rows(found: Findings) -> Iterator[list[str]]:
    """Operations a second that were reached, and their share of the peak."""
    for one in found.standings:
        if not one.readings or isinstance(one.system, DragomanLanes | PyTorchEager):
            continue
        workload, num_tokens = one.workload, one.readings[0].num_tokens
        if isinstance(one.system, BareProducts):  # without the encoder
            workload = dataclasses.replace(workload, inputs=[])
        operations = workload_operations(found.subject.model, workload, num_tokens)
        rate = operations * one.median_tokens_per_second / num_tokens
        peak = found.peak_rates[one.system.precision]
        yield [
            f"{one.workload.name}: {one.system.name} {one.system.precision}",
            f"{rate / 1e9:,.1f}",
            f"{peak / 1e9:,.0f}",
            f"{rate / peak:.1%}",
        ]


def figures_of(found: Findings) -> dict[str, Any]:
    """Everything, for `--json`."""
    results = []
    for one in found.standings:
        reference = reference_of(one, found.standings)
        results.append(
            {
                "workload": one.workload.name,
                "num_inputs": len(one.workload.inputs),
                "beam_size": one.workload.beam_size,
                "system": one.system.name,
                "precision": one.system.precision,
                "setting": one.setting,
                "readings": [dataclasses.asdict(reading) for reading in one.readings],
                "ratio": dataclasses.asdict(ratio(reference, one)) if reference else None,
            }
        )
    return {
        "model": found.subject.name,
        "dimensions": dataclasses.asdict(found.subject.dims),
        "agreement": [{**dataclasses.asdict(one), "share": one.equal_share} for one in found.agreements],
        "peak_operations_per_second": found.peak_rates,
        "results": results,
    }


def report(found: Findings) -> None:
    """Print all that was found out about one model."""
    machine = _machine()
    columns = ["", "equal answers", "parted at a tie", "log-probability error"]
    title = "Answers against PyTorch's, token for token; largest error of a token's mean log-probability"
    print_table(title, columns, list(agreement_rows(found)), machine)
    columns = ["", "tokens/s", "range", f"{_OURS}'s ratio", "setting"]
    title = f"{found.subject.name}: median tokens/s of the answers, and how many times as fast {_OURS} is"
    print_table(title, columns, list(speed_rows(found.standings)), machine)
    columns = ["", "Gop/s", "peak Gop/s", "share"]
    title = f"{found.subject.name}: operations by weights, against bare products of this type at 256 rows"
    print_table(title, columns, list(limit_rows(found)), machine)


def write_figures(findings: Sequence[Findings], path: Path | None) -> None:
    """Write everything where `--json` says."""
    models = [figures_of(one) for one in findings]
    write_json(path, {"benchmark": "engine", "machine": _machine(), "models": models})


def _machine() -> dict[str, Any]:
    return {**describe_machine(), "onnxruntime": ort.__version__}
