"""Progress bars on standard error; where nobody watches (no terminal), none."""

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(*, beside_results: bool = False) -> Iterator[Callable[[str, float, float], None]]:
    """Give a function to call with what is going on, how much of it is done, and of how much.

    The bar leaves the screen when the block ends. Of a command that prints results while it works
    (`beside_results`), they are the progress where they go to a terminal, too, and a bar would garble them.
    """
    if not sys.stderr.isatty() or (beside_results and sys.stdout.isatty()):
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from client.cli.output import report_console

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=report_console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
