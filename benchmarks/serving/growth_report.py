"""The tables, figures and curves of the growth benchmark."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort
from benchmarks.report import describe_machine, print_table, write_json, write_plot
from benchmarks.serving.contest import Ratio, Standing, ratio
from benchmarks.serving.dragoman_systems import DragomanEngine
from benchmarks.serving.engine_report import reference_of
from benchmarks.serving.growth_subject import MAX_TOKENS, Point, Series
from benchmarks.serving.memory import Memory

__all__ = ["Growth", "Measured", "exponents", "growth_rows", "plot", "report_growth"]

_OURS: Final = DragomanEngine.name
_MIB: Final = 2**20


@dataclasses.dataclass(frozen=True)
class Measured:
    """A system at one point; the peer has no arena."""

    point: Point
    standing: Standing
    memory: Memory
    arena_bytes: int | None

    @property
    def milliseconds_per_token(self) -> float:
        """Of the answers of all streams."""
        return 1e3 / self.standing.median_tokens_per_second


@dataclasses.dataclass(frozen=True)
class Growth:
    """A series and what was found along it, point by point."""

    series: Series
    measured: list[Measured]

    def by_system(self) -> Mapping[str, list[Measured]]:
        """The points of each system, in the series' order."""
        found: dict[str, list[Measured]] = {}
        for one in self.measured:
            found.setdefault(one.standing.system.name, []).append(one)
        return found

    def ratio(self, one: Measured) -> Ratio | None:
        """How many times as fast Dragoman is at this point, or None for Dragoman itself."""
        reference = reference_of(one.standing, [each.standing for each in self.measured])
        return ratio(reference, one.standing) if reference else None


def exponents(values: Sequence[float], costs: Sequence[float]) -> list[float | None]:
    """For each point the e by which cost ~ value^e leads there from the point before; None for the first."""
    points = list(zip(values, costs, strict=True))
    slopes = [
        math.log(cost / cost_before) / math.log(value / value_before)
        for (value_before, cost_before), (value, cost) in itertools.pairwise(points)
    ]
    return [None, *slopes]


def growth_rows(growth: Growth) -> Iterator[list[str]]:
    """A line a system, and under it one a point."""
    for name, points in growth.by_system().items():
        yield [f"{name} {points[0].standing.system.precision}", *[""] * 8]
        for one, exponent in zip(points, _time_exponents(points), strict=True):
            found = growth.ratio(one)
            yield [
                f"  {one.point.workload.name}",
                f"{one.milliseconds_per_token:.4f}",
                "" if exponent is None else f"{exponent:+.2f}",
                f"{one.standing.median_tokens_per_second:,.0f}",
                str(found) if found else "",
                "" if one.arena_bytes is None else f"{one.arena_bytes / _MIB:,.1f}",
                f"{one.memory.loaded_bytes / _MIB:,.1f}",
                f"{one.memory.peak_bytes / _MIB:,.1f}",
                " ".join(map(str, (one.standing.setting or {}).values())),
            ]


def plot(growths: Sequence[Growth], precision: str, path: Path) -> None:
    """Time above and memory below, a column a series; axes of a row are the same, so that slopes can be compared."""
    from matplotlib import figure, ticker  # noqa: PLC0415  only where a plot is asked for

    drawing = figure.Figure(figsize=(3.6 * len(growths), 6.6), layout="constrained")
    drawing.suptitle(
        "{cpu}, {usable_cores} cores, {precision}".format(**describe_machine(), precision=precision)
    )
    columns = drawing.subplots(2, len(growths), sharex="col", sharey="row", squeeze=False).T
    for growth, (time_axes, memory_axes) in zip(growths, columns, strict=True):
        for name, points in growth.by_system().items():
            values = [one.point.value for one in points]
            [line] = time_axes.plot(values, [one.milliseconds_per_token for one in points], marker="o")
            style = {"color": line.get_color(), "marker": "o"}
            peaks = [one.memory.peak_bytes / _MIB for one in points]
            memory_axes.plot(values, peaks, label=name, **style)
            arenas = [one.arena_bytes / _MIB for one in points if one.arena_bytes is not None]
            if arenas:
                label = f"{name}: reserved for keys and values"
                memory_axes.plot(values, arenas, label=label, linestyle="--", **style)
        time_axes.set(xscale="log", yscale="log", title=growth.series.name)
        memory_axes.set(xscale="log", yscale="log", xlabel=growth.series.unit)
        ticks = [point.value for point in growth.series.points]
        memory_axes.set_xticks(ticks, [_tick(value) for value in ticks])
        memory_axes.set_xticks([], minor=True)
        for axes in (time_axes, memory_axes):
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")  # not as powers of ten
            axes.yaxis.set_minor_locator(ticker.NullLocator())
            axes.grid(alpha=0.3)
    first_time, first_memory = columns[0]
    first_time.set_ylabel("ms a token")
    first_memory.set_ylabel("MiB, most while decoding")
    drawing.legend(*first_memory.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write_plot(path, drawing)


def report_growth(growths: Sequence[Growth], precision: str, json_path: Path | None) -> None:
    """Print everything, and write it where `--json` says."""
    machine = {**describe_machine(), "onnxruntime": ort.__version__}
    columns = ["", "ms/token", "exponent", "tokens/s", f"{_OURS}'s ratio"]
    columns += ["arenas MiB", "loaded MiB", "peak MiB", "setting"]
    for growth in growths:
        title = (
            f"{growth.series.name}: median time a token, its growth from the line above, and resident memory"
        )
        print_table(title, columns, list(growth_rows(growth)), machine)
    figures = {
        "benchmark": "growth",
        "machine": machine,
        "precision": precision,
        "max_tokens": MAX_TOKENS,
        "series": [_figures_of(growth) for growth in growths],
    }
    write_json(json_path, figures)


def _figures_of(growth: Growth) -> dict[str, Any]:
    return {
        "name": growth.series.name,
        "unit": growth.series.unit,
        "results": [
            {
                "value": one.point.value,
                "size": one.point.size,
                "workload": one.point.workload.name,
                "num_inputs": len(one.point.workload.inputs),
                "source_tokens": len(one.point.workload.inputs[0]),
                "answer_tokens": one.point.workload.max_tokens,
                "system": one.standing.system.name,
                "setting": one.standing.setting,
                "readings": [dataclasses.asdict(reading) for reading in one.standing.readings],
                "milliseconds_per_token": one.milliseconds_per_token,
                "exponent": exponent,
                "ratio": dataclasses.asdict(found) if (found := growth.ratio(one)) else None,
                "arena_bytes": one.arena_bytes,
                **dataclasses.asdict(one.memory),
            }
            for points in growth.by_system().values()
            for one, exponent in zip(points, _time_exponents(points), strict=True)
        ],
    }


def _time_exponents(points: Sequence[Measured]) -> list[float | None]:
    return exponents([one.point.value for one in points], [one.milliseconds_per_token for one in points])


def _tick(value: int) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value}"
