"""The end of a training, in figures."""

import dataclasses
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from dragoman.model.run import METRICS_FILE, REPORT_FILE, TENSORBOARD_FOLDER
from dragoman.model.training.loop import Outcome

__all__ = ["WARNING", "TrainingSummary", "outcome_facts", "print_summary", "readable_figure"]

WARNING = "warning"
"""The label of the fact that a training can hardly have learned anything."""

_ENDINGS = {
    "max_steps": "training.max_steps is reached",
    "max_minutes": "training.max_minutes are over",
    "patience": "validation no longer improves",
}


@dataclasses.dataclass(frozen=True)
class TrainingSummary:
    """A finished training.

    Attributes:
        path: the run folder.
        num_parameters: of the model.
        outcome: what the loop did.
        seconds: that training took with all that is part of it, the measurement of the final weights included.
        num_too_long: pairs left out, because a side is over the model's limit.
        metrics: as in run.json.
        cuts: what quality was measured on, where `max_minutes` left no time for all.
        warning: why the model can hardly have learned anything; empty if it can.
    """

    path: Path
    num_parameters: int
    outcome: Outcome
    seconds: float
    num_too_long: int
    metrics: dict[str, float]
    cuts: tuple[str, ...] = ()
    warning: str = ""


def outcome_facts(summary: TrainingSummary) -> dict[str, str]:
    """What the training was, text by label: for the table at its end and for the report."""
    outcome = summary.outcome
    facts = {
        "steps": f"{outcome.num_steps:,} ({_ENDINGS[outcome.stopped_by]})",
        "time": f"{summary.seconds:,.1f} s, validation and final quality included",
        "throughput": f"{outcome.num_tokens / outcome.seconds:,.0f} tokens/s",
        "padding": f"{100 * outcome.padding_share:.1f} % of what was computed",
    }
    if summary.num_too_long:
        facts["left out"] = f"{summary.num_too_long:,} pairs over the model's limits"
    if summary.cuts:
        facts["quality"] = (
            f"measured on {' and '.join(summary.cuts)}: for all, training.max_minutes are too few"
        )
    if summary.warning:
        facts[WARNING] = summary.warning
    return facts


def print_summary(summary: TrainingSummary, console: Console) -> None:
    """Show `summary` as a table."""
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a path is shown whole, to be copied
    for label, text in outcome_facts(summary).items():
        if label != WARNING:
            table.add_row(label, text)
    for name, value in summary.metrics.items():
        table.add_row(name.replace("_", " "), readable_figure(name, value))
    table.add_row("run", str(summary.path))
    table.add_row("report", str(summary.path / REPORT_FILE))
    table.add_row("curves", f"tensorboard --logdir {summary.path / TENSORBOARD_FOLDER}")
    table.add_row("figures", str(summary.path / METRICS_FILE))
    table.add_row("next", f"dragoman export {summary.path} --out models/{summary.path.name}/1")
    console.print(table)
    if summary.warning:
        console.print(f"warning: {summary.warning}", style="bold", markup=False, soft_wrap=True)


def readable_figure(name: str, value: float) -> str:
    """A measured figure with its unit; `name` ends in what was measured."""
    if name.endswith("loss"):
        return f"{value:.4f} nats a token"
    if name.endswith("bits_per_byte"):
        return f"{value:.3f}"
    return f"{value:.2f} %"
