"""`dragoman verify`: does a bundle answer as it should?"""

from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.agreement import agreement_lines
from dragoman.cli.options import Data, examples
from dragoman.cli.output import write_text
from dragoman.cli.progress import progress_bar
from dragoman.common.extras import require_extra

__all__ = ["EPILOG", "verify"]

EPILOG = examples(
    "dragoman verify models/dates/1  # files unchanged, golden examples right",
    "dragoman verify models/dates/1 --run runs/dates  # each token is PyTorch's too",
)


def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder: MODELS/NAME/VERSION.")
    ],
    *,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="The run that the bundle was exported from. Its PyTorch model is compared with the bundle.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
) -> None:
    """Check the files and golden examples of a bundle. With --run, compare the bundle with PyTorch too."""
    require_extra("train")
    from dragoman.export.verification import verify_bundle

    with progress_bar() as progress:
        report = verify_bundle(bundle, run, data=data, progress=progress)
    lines = [
        f"files: unchanged since export ({report.bundle})",
        f"golden examples: {report.num_golden_examples} answered as recorded",
        *(agreement_lines(report.agreement) if report.agreement else []),
    ]
    write_text("".join(f"{line}\n" for line in lines))
