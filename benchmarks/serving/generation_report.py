"""The tables and figures of the generation benchmark."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort
from benchmarks.report import describe_machine, print_table, write_json
from benchmarks.serving.agreement import Agreement
from benchmarks.serving.contest import Standing, ratio
from benchmarks.serving.engine_report import reference_of, speed_rows
from benchmarks.serving.generation_systems import DragomanGenerator

from dragoman.model.transformer import Dimensions

__all__ = ["GenerationFindings", "prompt_rows", "report_generation"]

_OURS: Final = DragomanGenerator.name


@dataclasses.dataclass(frozen=True)
class GenerationFindings:
    """All that was found out."""

    dims: Dimensions
    agreements: list[Agreement]
    first_tokens: list[Standing]
    streams: list[Standing]


def prompt_rows(standings: Sequence[Standing]) -> Iterator[list[str]]:
    """A line a workload, and under it one a system: time to the first token, and prompt tokens in that time."""
    last = None
    for one in standings:
        if one.workload is not last:
            last = one.workload
            yield [last.name, "", "", "", "", ""]
        reference = reference_of(one, standings)
        times = [reading.seconds for reading in one.readings]
        yield [
            f"  {one.system.name} {one.system.precision}",
            f"{1e3 * one.median_seconds:,.1f}",
            f"{1e3 * min(times):,.1f} to {1e3 * max(times):,.1f}",
            f"{_num_prompt_tokens(one) / one.median_seconds:,.0f}",
            str(ratio(reference, one)) if reference else "",
            " ".join(map(str, (one.setting or {}).values())),
        ]


def report_generation(found: GenerationFindings, json_path: Path | None) -> None:
    """Print everything, and write it where `--json` says."""
    machine = {**describe_machine(), "onnxruntime": ort.__version__}
    columns = ["", "equal answers", "parted at a tie", "log-probability error"]
    title = "Answers against PyTorch's, token for token; largest error of a token's mean log-probability"
    print_table(title, columns, list(_agreement_rows(found.agreements)), machine)
    columns = ["", "first token, ms", "range", "prompt tokens/s", f"{_OURS}'s ratio", "setting"]
    title = f"One prompt at a time: median time to the first token, and how many times as fast {_OURS} is"
    print_table(title, columns, list(prompt_rows(found.first_tokens)), machine)
    columns = ["", "tokens/s", "range", f"{_OURS}'s ratio", "setting"]
    title = f"Streams at once: median tokens/s of all answers, prompts read in that time, and {_OURS}'s speed over it"
    print_table(title, columns, list(speed_rows(found.streams)), machine)
    figures = {
        "benchmark": "generation",
        "machine": machine,
        "dimensions": dataclasses.asdict(found.dims),
        "agreement": [{**dataclasses.asdict(one), "share": one.equal_share} for one in found.agreements],
        "first_token": list(_figures(found.first_tokens)),
        "streams": list(_figures(found.streams)),
    }
    write_json(json_path, figures)


def _agreement_rows(agreements: Sequence[Agreement]) -> Iterator[list[str]]:
    for one in agreements:
        yield [
            f"{one.system} {one.precision}",
            f"{one.num_equal} of {one.num_inputs}",
            f"{one.num_ties}",
            f"{one.max_log_probability_error:.1e}",
        ]


def _figures(standings: Sequence[Standing]) -> Iterator[dict[str, Any]]:
    for one in standings:
        reference = reference_of(one, standings)
        yield {
            "workload": one.workload.name,
            "num_streams": len(one.workload.inputs),
            "prompt_tokens": _num_prompt_tokens(one),
            "new_tokens": one.workload.max_tokens,
            "system": one.system.name,
            "precision": one.system.precision,
            "setting": one.setting,
            "readings": [dataclasses.asdict(reading) for reading in one.readings],
            "ratio": dataclasses.asdict(ratio(reference, one)) if reference else None,
        }


def _num_prompt_tokens(standing: Standing) -> int:
    """Of one stream."""
    return len(standing.workload.inputs[0])
