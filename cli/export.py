"""`dragoman export`: from a run folder to a bundle that a server can load."""

import enum
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dragoman.cli.agreement import agreement_lines
from dragoman.cli.options import Data, examples
from dragoman.cli.output import note, write_text
from dragoman.cli.progress import progress_bar
from dragoman.common.extras import require_extra

if TYPE_CHECKING:
    from dragoman.export.exporter import ExportReport

__all__ = ["EPILOG", "export", "export_lines"]

EPILOG = examples(
    "dragoman export runs/dates  # the next free version of models/dates",
    "dragoman export runs/dates --out models/dates/2 --precision int8  # this version, smaller and faster",
    "dragoman export runs/dates --out models/dates-gpu --precision fp16  # for a GPU, under another name",
)


class Precision(enum.StrEnum):
    """Arithmetic of the exported graphs."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder that `dragoman train` left.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Folder for the bundle: MODELS/NAME/VERSION, where VERSION is a whole number. With MODELS/NAME the "
            "command takes the next free version.",
            show_default="models/NAME, with the name of the run's folder",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="fp32: the weights as trained. fp16, for GPUs: weights and caches have half the size. int8, for CPUs: "
            "integer products, whose ranges are measured on the validation split."
        ),
    ] = Precision.FP32,
    data: Data = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the bundle in --out. The command never replaces anything but a bundle."
        ),
    ] = False,
) -> None:
    """Export a run to ONNX and verify the bundle against PyTorch on held-out inputs.

    If an fp32 bundle disagrees with PyTorch in any token, the command writes nothing. An fp16 or int8 bundle rounds
    numbers: the command prints and records how far it agrees, and prints its quality beside that of fp32.
    """
    require_extra("train")
    from dragoman.export.destination import bundle_destination, choose_bundle_folder, served_folder
    from dragoman.export.exporter import export_run
    from dragoman.model.training.corpus_record import in_words

    wanted = out or Path("models", run.resolve().name)
    bundle = choose_bundle_folder(wanted)
    bundle_destination(bundle, run, replaces=force).check()
    if bundle != wanted:
        note(f"{wanted}: its next free version is {bundle.name}")
    with progress_bar() as progress:
        report = export_run(
            run, bundle, precision=precision.value, data=data, replaces=force, progress=progress
        )
    write_text("".join(f"{line}\n" for line in export_lines(report)))
    if report.corpus_changes:
        note(
            f"note: since {run} was trained, {in_words(report.corpus_changes)}: it may have learned from what is held "
            "out now, so its quality may be lower than measured"
        )
    note(f"next: dragoman serve --models {shlex.quote(str(served_folder(bundle)))}")


def export_lines(report: "ExportReport") -> list[str]:
    """The report, a fact a line."""
    return [
        f"bundle: {report.bundle} ({report.precision}, {report.num_bytes / 1e6:.1f} MB)",
        *agreement_lines(report.agreement),
        *(_compared_quality(report) if report.fp32_quality else _quality(report)),
    ]


def _quality(report: "ExportReport") -> list[str]:
    return [
        f"{figure.metric}: {figure.value:.4g} ({figure.num_examples} examples, {figure.data})"
        for figure in report.quality
    ]


def _compared_quality(report: "ExportReport") -> list[str]:
    """A table: each figure in fp32 and in the bundle's precision."""
    rows = [("quality", "fp32", report.precision)]
    rows += [
        (ours.metric, f"{fp32.value:.4g}", f"{ours.value:.4g}")
        for fp32, ours in zip(report.fp32_quality, report.quality, strict=True)
    ]
    table = [f"{name:<13} {fp32:>8} {ours:>8}" for name, fp32, ours in rows]
    measured = report.quality[0]
    return [*table, f"(on {measured.num_examples} examples, {measured.data})"]
