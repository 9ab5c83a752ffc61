"""`dragoman token create`: a bearer token for callers of a server."""

import datetime as dt
import re
from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.command import Command, CommandGroup
from dragoman.cli.options import PriorityName, examples
from dragoman.cli.output import note, write_text
from dragoman.common.errors import UsageError
from dragoman.common.extras import require_extra
from dragoman.common.files import atomic_write

__all__ = ["EPILOG", "app"]

EPILOG = examples("dragoman token create app")
_CREATE_EPILOG = examples(
    "dragoman token create app --tokens-file tokens.toml > app.token",
    "dragoman token create operator --scopes infer,admin --expires 90d --tokens-file tokens.toml > operator.token",
    "dragoman token create prometheus --scopes metrics  # prints the token, and the line of the tokens file",
)

_DURATION = re.compile(r"([0-9]{1,5})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


app = typer.Typer(cls=CommandGroup, no_args_is_help=True)


@app.callback()
def token() -> None:
    """Make bearer tokens for callers of a server."""


@app.command(cls=Command, epilog=_CREATE_EPILOG)
def create(
    name: Annotated[
        str,
        typer.Argument(
            help="Whose token it is: the name in limits and in lists. Letters, digits, '.', '_', '-'."
        ),
    ],
    *,
    scopes: Annotated[
        str,
        typer.Option(metavar="SCOPES", help="What it is for: infer, admin, metrics, with commas between."),
    ] = "infer",
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="When it ends, such as 90d, 12h or 30m from now.", show_default="never"
        ),
    ] = None,
    best_priority: Annotated[
        PriorityName,
        typer.Option(help="Calls with this token that ask for a better priority get this one."),
    ] = "high",
    tokens_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Add the token's hash to this file of the server (security.tokens_file).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a bearer token and print it. This is the only time that anybody sees it: the server keeps a hash.

    Without --tokens-file the second line of the output is the line for the server's tokens file.
    """
    require_extra("serve")
    from dragoman.server.priority import Priority
    from dragoman.server.scopes import Scope
    from dragoman.server.security.tokens import check_token_name, make_token, token_line

    if not check_token_name(name):
        raise UsageError(f"name {name!r}: letters, digits, '.', '_' and '-', at most 64 of them")
    known = {scope.value: scope for scope in Scope}
    requested = [part.strip() for part in scopes.split(",")]
    if unknown := [part for part in requested if part not in known]:
        raise UsageError(f"--scopes {scopes!r}: {unknown[0]!r} is none of {', '.join(known)}")
    text = make_token()
    line = token_line(
        text,
        name,
        [known[part] for part in dict.fromkeys(requested)],
        _end(expires),
        Priority[best_priority.upper()],
    )
    if tokens_file is None:
        write_text(f"{text}\n{line}\n")
        return
    _add(tokens_file, name, line)
    write_text(f"{text}\n")
    note(f"{tokens_file} has the hash of the token {name!r} now")


def _end(expires: str | None) -> dt.datetime | None:
    if expires is None:
        return None
    found = _DURATION.fullmatch(expires)
    if found is None:
        raise UsageError(f"--expires {expires!r}: a number and one of d, h, m, such as 90d")
    try:
        return dt.datetime.now(dt.UTC) + dt.timedelta(**{_UNITS[found[2]]: int(found[1])})
    except (OverflowError, ValueError) as error:
        raise UsageError(f"--expires {expires!r}: no calendar goes so far") from error


def _add(path: Path, name: str, line: str) -> None:
    """Write a new file in the place of `path`: a server that reads it meanwhile finds a whole one.

    Raises:
        UsageError: the file has a token of this name, or is no tokens file.
        OperationError: it cannot be written.
    """
    from dragoman.server.security.tokens import TokenTable

    before, mode = "", 0o600
    if path.exists():
        if name in TokenTable.read(path).names:
            raise UsageError(f"{path} has a token {name!r} already: take another name, or remove its line")
        before, mode = path.read_text(encoding="utf-8").rstrip("\n") + "\n", path.stat().st_mode & 0o777
    atomic_write(path, f"{before}{line}\n", mode=mode)
