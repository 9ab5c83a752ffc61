"""The screen of `dragoman top`, and its figures as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dragoman.cli.top.figures import ModelFigures, ServerFigures

__all__ = ["Servers", "as_json", "screen"]

_BAR_CELLS = 10
_FULL_SHARE, _BUSY_SHARE = 0.95, 0.8
"""Shares from which on a bar is red, and yellow: little is left; new instances are due (the autoscaler's target)."""
_COLUMN_ENDS = {
    "CALLS/S": 24,
    "P50": 33,
    "P95": 42,
    "P99": 51,
    "TOKENS/S": 61,
    "SLOTS": 80,
    "WAITING": 89,
    "FAILED/S": 99,
    "REFUSED/S": 110,
    "QUEUE": 119,
    "FIRST": 128,
    "BATCH": 136,
    "OLDEST": 145,
}
"""Columns beside the model's name, most important first, and where each one ends."""
_PHASE_STYLES = {"serving": "green", "loading": "yellow", "draining": "yellow", "stopping": "yellow"}

Servers = Mapping[str, ServerFigures | str]
"""By address: what a server does, or why it gives no metrics."""


def screen(servers: Servers, models: Sequence[ModelFigures], *, title: str, width: int) -> RenderableType:
    """A table of servers and a table of models, with the columns for which `width` characters are enough."""
    return Group(Text(title, style="dim"), _servers_table(servers), Text(), _models_table(models, width))


def as_json(servers: Servers, models: Sequence[ModelFigures]) -> dict[str, Any]:
    """The same figures: seconds, bytes, cores, and rates for a second."""
    return {
        "servers": {
            address: {"error": figures} if isinstance(figures, str) else dataclasses.asdict(figures)
            for address, figures in servers.items()
        },
        "models": [dataclasses.asdict(model) for model in models],
    }


def _servers_table(servers: Servers) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("SERVER")
    table.add_column("PHASE")
    for name in ("UP", "CALLS/S", "CPU", "MEMORY", "SLOTS", "WAITING"):
        table.add_column(name, justify="right")
    for address, figures in servers.items():
        if isinstance(figures, str):
            table.add_row(address, Text(figures, style="red"))
            continue
        table.add_row(
            address,
            Text(figures.phase, style=_PHASE_STYLES.get(figures.phase, "red")),
            "-" if figures.up_s is None else _duration(figures.up_s),
            f"{figures.calls:,.1f}",
            _of(figures.cpu_cores, figures.cpu_limit_cores, lambda cores: f"{cores:.2f}"),
            _of(figures.memory_bytes, figures.memory_limit_bytes, _bytes),
            _bar(figures.slots_used, figures.slots_total),
            _count(figures.waiting),
        )
    return table


def _models_table(models: Sequence[ModelFigures], width: int) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("MODEL", no_wrap=True)
    shown = _columns(width)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        cells = _cells(model)
        table.add_row(f"{model.model}/{','.join(model.versions)}", *(cells[name] for name in shown))
    return table


def _cells(model: ModelFigures) -> dict[str, str | Text]:
    p50, p95, p99 = map(_seconds, model.latency_s)
    return {
        "CALLS/S": f"{model.calls:,.1f}",
        "P50": p50,
        "P95": p95,
        "P99": p99,
        "TOKENS/S": f"{model.tokens:,.0f}",
        "SLOTS": _bar(model.slots_used, model.slots_total),
        "WAITING": _count(model.waiting),
        "FAILED/S": _bad(model.failed),
        "REFUSED/S": _bad(model.refused),
        "QUEUE": _seconds(model.waited_s),
        "FIRST": _seconds(model.first_token_s),
        "BATCH": "-" if model.batch_rows is None else f"{model.batch_rows:.1f}",
        "OLDEST": _seconds(model.oldest_waiting_s or None),
    }


def _columns(width: int) -> list[str]:
    """The most important columns that fit."""
    return [name for name, end in _COLUMN_ENDS.items() if end <= width] or list(_COLUMN_ENDS)[:1]


def _bar(used: float, total: float) -> Text:
    share = used / total if total else 0.0
    style = "red" if share >= _FULL_SHARE else "yellow" if share >= _BUSY_SHARE else "green"
    num_cells = min(_BAR_CELLS, round(share * _BAR_CELLS))
    return Text.assemble(
        ("━" * num_cells, style), ("━" * (_BAR_CELLS - num_cells), "bright_black"), f" {used:.0f}/{total:.0f}"
    )


def _count(number: float) -> Text:
    return Text(f"{number:,.0f}", style="yellow" if number else "")


def _bad(rate: float) -> Text:
    return Text(f"{rate:,.1f}", style="red" if rate >= 0.05 else "dim")


def _of(value: float | None, limit: float | None, shown: Any) -> str:
    if value is None:
        return "-"
    return shown(value) if limit is None else f"{shown(value)} of {shown(limit)}"


def _bytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
