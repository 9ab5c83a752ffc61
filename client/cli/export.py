"""`dragoman export`: from a run folder to a bundle that a server can load."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.agreement import agreement_lines
from client.cli.options import Data, examples
from client.cli.output import note, write_text
from client.cli.progress import progress_bar

if TYPE_CHECKING:
    from export.exporter import ExportReport

__all__ = ["EPILOG", "export", "export_lines"]

EPILOG = examples(
    "dragoman export runs/dates --out models/dates/1",
    "dragoman export runs/dates --out models/dates/2 --precision int8  # smaller and faster",
    "dragoman export runs/dates --out models/dates/3 --precision fp16  # for a GPU",
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
        Path,
        typer.Option(metavar="BUNDLE", help="The bundle's folder: MODELS/NAME/VERSION, VERSION a number."),
    ],
    precision: Annotated[
        Precision,
        typer.Option(
            help="fp32; fp16, for GPUs: weights and caches half the size; or int8, for CPUs: integer products, "
            "ranges measured on the validation split."
        ),
    ] = Precision.FP32,
    data: Data = None,
) -> None:
    """Export a run to ONNX and verify the bundle against PyTorch on held-out inputs.

    When an fp32 bundle disagrees with PyTorch in any token, nothing is written. Of fp16 and int8 bundles, which
    round, the agreement is told and recorded.
    """
    from export.exporter import export_run

    with progress_bar() as progress:
        report = export_run(run, out, precision=precision.value, data=data, progress=progress)
    write_text("".join(f"{line}\n" for line in export_lines(report)))
    note(f"next: dragoman serve --models {out.parent.parent}")


def export_lines(report: "ExportReport") -> list[str]:
    """The report, a fact a line."""
    return [
        f"bundle: {report.bundle} ({report.precision}, {report.num_bytes / 1e6:.1f} MB)",
        *agreement_lines(report.agreement),
        *(
            f"{figure.metric}: {figure.value:.4g} ({figure.num_examples} examples, {figure.data})"
            for figure in report.quality
        ),
    ]
