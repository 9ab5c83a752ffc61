"""Options of the commands that read and write whole files, each written once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "FileBundle",
    "InputColumn",
    "InputFiles",
    "Out",
    "OutputColumn",
    "RowsPerFile",
    "Shard",
    "Workers",
]

_TABLES = "Tables"
_WORK = "Work"

InputFiles = Annotated[
    list[str],
    typer.Argument(
        metavar="IN...",
        help="Files, or folders of files: .parquet, .jsonl or .txt; lines also packed as .gz, .bz2, .zst or .lz4. "
        "Paths, or URIs such as s3://bucket/folder.",
        show_default=False,
    ),
]
FileBundle = Annotated[
    Path,
    typer.Option(
        "--bundle", metavar="BUNDLE", help="Folder of the model (MODELS/NAME/VERSION).", show_default=False
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for the answers, a path or a URI. The same command goes on with what it holds.",
        show_default=False,
    ),
]
InputColumn = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Column, or key of JSON Lines, that holds the texts.", rich_help_panel=_TABLES
    ),
]
OutputColumn = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Column for the answers. NAME_score and NAME_finish_reason stand beside it.",
        rich_help_panel=_TABLES,
    ),
]
RowsPerFile = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Most rows of a file that is written.", rich_help_panel=_WORK),
]
Shard = Annotated[
    str,
    typer.Option(
        metavar="I/N",
        help="Make number I, from 0, of N shares of the files. Several machines, each with its own I, write to one "
        "--out. /N takes I from JOB_COMPLETION_INDEX, as an Indexed Job of Kubernetes sets it.",
        rich_help_panel=_WORK,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Processes that compute.",
        show_default="one for each core",
        rich_help_panel=_WORK,
    ),
]
