"""Progress on standard error: a bar in a terminal, and a line now and then where that is a file or a pipe."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from dragoman.cli.output import note

__all__ = ["progress_bar"]

_MAX_SILENCE_S: Final = 50.0  # a reader of the log sees once a minute that the command goes on


@contextlib.contextmanager
def progress_bar(
    *, beside_results: bool = False, tells_time_left: bool = False
) -> Iterator[Callable[[str, float, float], None]]:
    """Give a function that shows progress; its arguments are the phase, the amount done and the total.

    The bar leaves the screen when the block ends. `beside_results` says that the command prints results meanwhile:
    where they go to the same terminal there is no bar, which would garble them. With `tells_time_left` the time that
    the rest takes at the rate until now is shown; the amount that is done at the first call does not count.
    """
    if not sys.stderr.isatty():
        yield _LinesWithTimeLeft() if tells_time_left else _LinesNowAndThen()
        return
    if beside_results and sys.stdout.isatty():
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from dragoman.cli.output import report_console

    left = (TextColumn("left"), TimeRemainingColumn()) if tells_time_left else ()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), *left)
    with Progress(*columns, console=report_console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)


class _LinesNowAndThen:
    """Prints progress as a line when no line was printed for `_MAX_SILENCE_S`."""

    def __init__(self) -> None:
        self._said_s = time.monotonic()

    def __call__(self, phase: str, done: float, total: float) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= _MAX_SILENCE_S:
            self._said_s = now_s
            note(f"{phase}: {done:,.0f} of {total:,.0f}")


class _LinesWithTimeLeft:
    """Prints how much is done and how long the rest takes, when no line was printed for `_MAX_SILENCE_S`."""

    def __init__(self) -> None:
        self._said_s = time.monotonic()
        self._first: tuple[float, float] | None = None  # the time and the amount of the first call

    def __call__(self, phase: str, done: float, total: float) -> None:
        now_s = time.monotonic()
        self._first = self._first or (now_s, done)
        if now_s - self._said_s < _MAX_SILENCE_S:
            return
        self._said_s = now_s
        began_s, before = self._first
        share = f"{phase}, {done / total:.0%}" if total else phase
        if done > before:
            left_s = (now_s - began_s) * (total - done) / (done - before)
            share += f", {_as_time(left_s)} left"
        note(share)


def _as_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
