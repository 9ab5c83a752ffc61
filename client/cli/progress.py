"""Progress on standard error: a bar in a terminal, and a line now and then where that is a file or a pipe."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from client.cli.output import note

__all__ = ["progress_bar"]

_MAX_SILENCE_S: Final = 50.0  # who follows a log sees once a minute that it goes on


@contextlib.contextmanager
def progress_bar(*, beside_results: bool = False) -> Iterator[Callable[[str, float, float], None]]:
    """Give a function to call with what is going on, how much of it is done, and of how much.

    The bar leaves the screen when the block ends. Of a command that prints results while it works
    (`beside_results`), they are the progress where they go to a terminal, too, and a bar would garble them.
    """
    if not sys.stderr.isatty():
        yield _LinesNowAndThen()
        return
    if beside_results and sys.stdout.isatty():
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from client.cli.output import report_console

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=report_console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


class _LinesNowAndThen:
    """Says how far it is once nothing was said for `_MAX_SILENCE_S`."""

    def __init__(self) -> None:
        self._said_s = time.monotonic()

    def __call__(self, what: str, done: float, total: float) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= _MAX_SILENCE_S:
            self._said_s = now_s
            note(f"{what}: {done:,.0f} of {total:,.0f}")
