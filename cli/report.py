"""`dragoman report`: a run folder's records as a page."""

from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.options import examples
from dragoman.cli.output import write_text
from dragoman.common.extras import require_extra

__all__ = ["EPILOG", "report"]

EPILOG = examples(
    "dragoman report runs/dates",
    "dragoman report runs/mine  # while it trains: what is measured so far",
)


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run folder of `dragoman train`, finished or still in training."
        ),
    ],
) -> None:
    """Write RUN/report.html again: curves, samples, figures, and the commands that repeat the training.

    `dragoman train` writes the page when it ends. The page needs no other file. The command prints its path.
    """
    require_extra("train")
    from dragoman.model.training.report import write_report

    write_text(f"{write_report(run)}\n")
