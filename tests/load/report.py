"""What a program of this folder ends with: bounds and whether they hold, tables, the run that they come from.

`--json FILE` keeps all of it. `tools/reliability_page.py` writes docs/reliability.md from such files.
"""

import argparse
import dataclasses
import datetime as dt
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import describe_host, write_json
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

__all__ = ["Bound", "Report", "Table", "at_least", "at_most", "equals"]

_ROOT = Path(__file__).parents[2]
_WIDTH = 140


@dataclasses.dataclass(frozen=True)
class Bound:
    """A statement of the run, with what it must be."""

    what: str
    measured: str
    limit: str
    holds: bool


def at_most(what: str, measured: float, limit: float, unit: str = "") -> Bound:
    """`measured` may not be above `limit`."""
    return Bound(what, f"{measured:,.4g}{unit}", f"at most {limit:,g}{unit}", measured <= limit)


def at_least(what: str, measured: float, limit: float, unit: str = "") -> Bound:
    """`measured` may not be below `limit`."""
    return Bound(what, f"{measured:,.4g}{unit}", f"at least {limit:,g}{unit}", measured >= limit)


def equals(what: str, measured: object, wanted: object) -> Bound:
    """`measured` has to be `wanted`."""
    return Bound(what, str(measured), str(wanted), measured == wanted)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass
class Report:
    """One run of a program.

    Attributes:
        name: of the program, and of its section on the page.
        facts: figures without a bound.
    """

    name: str
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    bounds: list[Bound] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether no bound is broken."""
        return all(bound.holds for bound in self.bounds)

    def finish(self, options: argparse.Namespace) -> int:
        """Print all, write the file that `--json` asks for, and return the exit code."""
        run = _describe_run()
        self._print(run)
        write_json(options.json, {"name": self.name, "holds": self.holds, **run, **self._content()})
        return 0 if self.holds else 1

    def _content(self) -> dict[str, Any]:
        return {
            "facts": self.facts,
            "bounds": [dataclasses.asdict(bound) for bound in self.bounds],
            "tables": [dataclasses.asdict(table) for table in self.tables],
        }

    def _print(self, run: Mapping[str, Any]) -> None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH)
        for name, value in self.facts.items():
            console.print(f"{name}: {value}", highlight=False)
        for table in self.tables:
            _print_table(console, table)
        rows = [
            [bound.what, bound.measured, bound.limit, "yes" if bound.holds else "NO"] for bound in self.bounds
        ]
        _print_table(console, Table("", ["bound", "measured", "limit", "holds"], rows))
        machine = run["machine"]
        console.print(
            f"{self.name}: {'all bounds hold' if self.holds else 'BROKEN'}; {run['date']}, commit {run['commit']}, "
            f"{machine['cpu']}, {machine['usable_cores']} usable cores, load {machine['load_average_1_min']}",
            highlight=False,
        )


def _print_table(console: Console, table: Table) -> None:
    drawn = RichTable(title=table.title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for column in table.columns:
        drawn.add_column(column, overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)


def _describe_run() -> dict[str, Any]:
    module = sys.modules["__main__"].__spec__
    program = f"python -m {module.name}" if module else Path(sys.argv[0]).name
    return {
        "command": os.environ.get("LOAD_COMMAND") or shlex.join([*program.split(), *sys.argv[1:]]),
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": describe_host(),
    }


def _commit() -> str:
    """The commit that ran, marked where files differ from it."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
