"""What all benchmarks end with: the machine they ran on, a table, and a file with every figure."""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from dragoman.common.cpu import usable_cores
from dragoman.common.errors import UsageError
from dragoman.common.files import Destination

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "add_json_option",
    "add_plot_option",
    "argument_parser",
    "describe_host",
    "describe_machine",
    "positive",
    "print_table",
    "write_json",
    "write_plot",
]

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
    """`--json FILE`, for `write_json`. What is there and is not figures of a benchmark is refused at once."""
    parser.add_argument(
        "--json",
        type=lambda text: _checked(_figures_at(Path(text))),
        metavar="FILE",
        help="write every figure there as well, over those of an earlier run",
    )


def add_plot_option(parser: argparse.ArgumentParser, what: str) -> None:
    """`--plot FILE`, for `write_plot`. What is there and is not a plot is refused at once."""
    parser.add_argument(
        "--plot",
        type=lambda text: _checked(_plot_at(Path(text))),
        metavar="FILE",
        help=f"a PNG of {what}, over that of an earlier run",
    )


def describe_machine() -> dict[str, Any]:
    """The machine, the software, and how busy others keep it."""
    import torch  # noqa: PLC0415  what does not measure torch does not wait for it

    return {**describe_host(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def describe_host() -> dict[str, Any]:
    """The same without torch."""
    return {
        "cpu": _cpu_model(),
        "usable_cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
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
        with _figures_at(path).file() as file:
            file.write((json.dumps(figures, indent=2) + "\n").encode())


def write_plot(path: Path, drawing: "Figure") -> None:
    """Write a drawing where `--plot` says, as a PNG."""
    with _plot_at(path).file() as file:
        drawing.savefig(file, dpi=120, format="png")


def _figures_at(path: Path) -> Destination:
    return Destination(
        path=path, kind="figures of a benchmark", is_folder=False, flaw=_figures_flaw, replaces=True
    )


def _plot_at(path: Path) -> Destination:
    return Destination(path=path, kind="a plot", is_folder=False, flaw=_plot_flaw, replaces=True)


def _checked(destination: Destination) -> Path:
    try:
        destination.check()
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return destination.path


def _figures_flaw(path: Path) -> str | None:
    if not path.is_file():
        return "it is no file"
    try:
        figures = json.loads(path.read_bytes())
    except ValueError:
        return "it is not JSON"
    return None if isinstance(figures, dict) and "machine" in figures else "it names no machine"


def _plot_flaw(path: Path) -> str | None:
    if not path.is_file():
        return "it is no file"
    with path.open("rb") as file:
        start = file.read(1 << 10)
    return None if start.startswith(b"\x89PNG") and b"Matplotlib" in start else "it is no plot by Matplotlib"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
