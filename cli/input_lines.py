"""The input lines of a command: its arguments, a file or standard input."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dragoman.cli.output import note_waiting_for_input
from dragoman.common.errors import UsageError

__all__ = ["input_lines"]


@contextlib.contextmanager
def input_lines(texts: Sequence[str] | None, inputs: Path | None) -> Iterator[Sequence[str] | int]:
    """Give the texts of the command line, or the descriptor of the file that holds the lines.

    Raises:
        UsageError: there are both, or the file cannot be read.
    """
    if texts and inputs:
        raise UsageError(f"--inputs {inputs} and {len(texts)} texts: give one of them")
    if texts:
        yield texts
    elif inputs is None or inputs == Path("-"):
        note_waiting_for_input()
        yield sys.stdin.fileno()
    else:
        try:
            file = inputs.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read inputs from {inputs}: {error.strerror}") from error
        with file:
            yield file.fileno()
