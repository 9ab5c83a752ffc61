"""Standard output for results, standard error for messages."""

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "is_unicode",
    "json_line",
    "note",
    "note_waiting_for_input",
    "report_console",
    "write_json",
    "write_text",
]

_WIDE = 160


def write_text(text: str) -> None:
    """Write to standard output at once, as UTF-8 whatever the locale says: scripts rely on it.

    The bytes of a file's name that are no UTF-8 come out as they came in.

    Raises:
        OSError: it cannot be written; `filename` says that it is standard output.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def write_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def json_line(value: Any) -> str:
    """One JSON document that is a line, for output of many."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def note(text: str) -> None:
    """Print a message on standard error.

    A message is not worth a result: nothing happens where standard error cannot be written.
    """
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: it holds no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def note_waiting_for_input() -> None:
    """Say that the command reads from the terminal, which otherwise looks as if it hangs."""
    if sys.stdin.isatty():
        note("reading from the terminal; Ctrl-D ends the input")


def report_console(*, stderr: bool = False) -> "Console":
    """A console for tables; into a file or a pipe they are as wide as they need to be."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _WIDE, highlight=False)
