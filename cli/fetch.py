"""`dragoman models fetch`: bundles from a web server into a models folder."""

from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.options import examples
from dragoman.cli.output import note

__all__ = ["EPILOG", "fetch"]

EPILOG = examples("dragoman models fetch models.toml --out models")


def fetch(
    bundles: Annotated[
        Path,
        typer.Argument(
            metavar="LIST",
            help='TOML file: a table ["NAME/VERSION"] with url and sha256 for each bundle.',
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The models folder.", show_default=False)],
) -> None:
    """Fetch bundles over HTTP, compare each with its SHA-256 and unpack it to DIR/NAME/VERSION.

    Each is a tar file with bundle.json at its top, compressed or not. A bundle that is in the folder already stays. So
    the same command can be repeated after a failure, and can run before each start of a server.
    """
    from dragoman.cli.bundle_fetching import fetch_bundle, read_list

    for place, archive in read_list(bundles).items():
        size = fetch_bundle(archive, out / place)
        note(
            f"{place}: there already"
            if size is None
            else f"{place}: {size:,} bytes fetched, the hash is right"
        )
