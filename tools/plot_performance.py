"""Draw the plots of the documentation from the figures beside them, as SVG that is the same each time.

docs/performance.md has those of docs/figures/performance.toml, docs/capacity.md that of docs/figures/capacity.json.
"""

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
)  # Okabe and Ito: told apart by people who see red and green alike
_STYLE = {
    "svg.hashsalt": "dragoman",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "figure.facecolor": "white",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="docs/figures")
    folder = parser.parse_args().folder
    measured = tomllib.loads((folder / "performance.toml").read_text(encoding="utf-8"))
    measured["capacity"] = json.loads((folder / "capacity.json").read_text(encoding="utf-8"))["day"]
    mpl.rcParams.update(_STYLE)
    plots = {"decoding": _decoding, "service": _service, "growth": _growth, "capacity": _capacity}
    for name, draw in plots.items():
        figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
        draw(axes, measured[name])
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def _decoding(axes: Axes, measured: dict[str, Any]) -> None:
    works = measured.pop("works")
    width = 0.8 / len(measured)
    for index, (model, ratios) in enumerate(measured.items()):
        places = [place + (index - 1) * width for place in range(len(works))]
        bars = axes.bar(places, ratios, width, label=model, color=_COLOURS[index])
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(works)), works)
    axes.set_ylabel("times as fast as CTranslate2")
    axes.axhline(1, color="black", linewidth=1)
    axes.grid(visible=False, axis="x")
    axes.set_title("Decoding, int8, greedy, 2 cores (1 = CTranslate2's speed)", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)


def _service(axes: Axes, measured: dict[str, Any]) -> None:
    rates = measured.pop("rates")
    for (name, p99), colour, marker in zip(measured.items(), _COLOURS, "osD", strict=True):
        axes.plot(rates[: len(p99)], p99, label=name, color=colour, marker=marker, markersize=4)
    axes.set_yscale("log")
    axes.set_yticks([10, 25, 50, 100, 250], ["10", "25", "50", "100", "250"])
    axes.minorticks_off()
    axes.set_xlabel("sentences a second")
    axes.set_ylabel("p99 latency, ms")
    axes.set_title("Behind gRPC: Multi30k, int8, load generator on the same 2 cores", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)


def _growth(axes: Axes, measured: dict[str, Any]) -> None:
    tokens = measured.pop("tokens")
    for (name, ratios), colour, marker in zip(measured.items(), _COLOURS, "os", strict=False):
        axes.plot(tokens, ratios, label=name, color=colour, marker=marker, markersize=5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [str(count) for count in tokens])
    axes.set_ylim(0, 2.5)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xlabel("tokens")
    axes.set_ylabel("times as fast as CTranslate2")
    axes.set_title("As lengths grow: int8, greedy, 8 inputs a core, 7.6 M weights", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)


def _capacity(axes: Axes, day: dict[str, Any]) -> None:
    hours = [index * day["seconds_apart"] / 3600 for index in range(len(day["needed"]))]
    axes.fill_between(hours, day["needed"], color="#cccccc", label="needed at least", linewidth=0)
    shown = {"pods go after 5 min, 1 a min": _COLOURS[1], "as deployed": _COLOURS[0]}
    for name, colour in shown.items():
        width = 2.0 if name == "as deployed" else 0.9
        axes.step(hours, day["pods"][name], where="post", label=name, color=colour, linewidth=width)
    axes.set_xlabel("hour of the day")
    axes.set_xticks(range(0, 25, 3))
    axes.set_xlim(0, 24)
    axes.set_ylim(0)
    axes.set_ylabel("pods")
    axes.set_title(
        "A simulated day: the autoscaler as it is, and without its long window", loc="left", fontsize=10
    )
    axes.legend(frameon=False, fontsize=9, loc="upper left")


if __name__ == "__main__":
    main()
