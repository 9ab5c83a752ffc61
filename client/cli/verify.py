"""`dragoman verify`: does a bundle answer as it should?"""

from pathlib import Path
from typing import Annotated

import typer

from client.cli.agreement import agreement_lines
from client.cli.options import Data, examples
from client.cli.output import write_text
from client.cli.progress import progress_bar

__all__ = ["EPILOG", "verify"]

EPILOG = examples(
    "dragoman verify models/dates/1  # files unchanged, golden examples right",
    "dragoman verify models/dates/1 --run runs/dates  # and every token as PyTorch gives it",
)


def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder: MODELS/NAME/VERSION.")
    ],
    *,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="The run it was exported from, to compare with.", show_default=False
        ),
    ] = None,
    data: Data = None,
) -> None:
    """Check a bundle's files and golden examples and, given its run, compare it with PyTorch."""
    from export.verification import verify_bundle

    with progress_bar() as progress:
        report = verify_bundle(bundle, run, data=data, progress=progress)
    lines = [
        f"files: unchanged since export ({report.bundle})",
        f"golden examples: {report.num_golden_examples} answered as recorded",
        *(agreement_lines(report.agreement) if report.agreement else []),
    ]
    write_text("".join(f"{line}\n" for line in lines))
