"""What all benchmarks end with: the machine they ran on, a table, and a file with every figure."""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from common.cpu import usable_cores

__all__ = ["add_json_option", "argument_parser", "describe_machine", "positive", "print_table", "write_json"]

_WIDTH = 140  # a table in a file or a pipe is not cut


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows `description`, the module's docstring, as it is, and each option's default."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    return argparse.ArgumentParser(description=description, formatter_class=Formatter)


def positive(text: str) -> int:
    """An option's whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """`--json FILE`, for `write_json`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as well")


def describe_machine() -> dict[str, Any]:
    """The machine, the software, and how busy others keep it."""
    return {
        "cpu": _cpu_model(),
        "usable_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average_1_min": round(psutil.getloadavg()[0], 2),
    }


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], machine: Mapping[str, Any]
) -> None:
    """Print the figures on standard output, and the machine under them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(
        "{cpu}, {usable_cores} usable cores, {threads} threads, load {load_average_1_min}; "
        "Python {python}, torch {torch}".format(**machine),
        highlight=False,
    )


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write `figures` where `--json` says, if it was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
