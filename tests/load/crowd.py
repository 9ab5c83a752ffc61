"""Work shared out over several processes of this program, with a progress bar."""

import math
import multiprocessing
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["counted", "crowd", "progress_bar"]

Result = TypeVar("Result")
_INTERVAL_S = 0.25
_done: Any = None
"""In a process of the crowd: where it says how much it has done."""


def progress_bar() -> Progress:
    """On standard error, as standard output has the figures."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def counted(number: int) -> None:
    """Say that so much more is done."""
    if _done is not None:
        _done.put(number)


def crowd(
    work: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    *,
    title: str = "",
    total: float = 0,
    watch: Callable[[float], None] = lambda _: None,
    limit_s: float = math.inf,
) -> list[Result]:
    """Run `work` in a process for each of the `arguments` at one time; returns the results in their order.

    `watch` is called some times a second with how much has been `counted` in all processes. The processes are killed
    where it raises an error, where work fails, or after `limit_s`.

    Raises:
        TimeoutError: it took longer than `limit_s`.
    """
    end_s = time.monotonic() + limit_s
    context = multiprocessing.get_context("spawn")  # gRPC does not live through a fork
    done = context.Queue()
    with (
        ProcessPoolExecutor(len(arguments), context, _begin, (done,)) as pool,
        progress_bar() as progress,
    ):
        bar = progress.add_task(title, total=total or None)
        running = [pool.submit(work, *each) for each in arguments]
        num_done = 0.0
        try:
            while wait(running, timeout=_INTERVAL_S).not_done:
                num_done += _taken(done)
                progress.update(bar, completed=num_done)
                watch(num_done)
                if failed := next((each for each in running if each.done() and each.exception()), None):
                    failed.result()
                if time.monotonic() > end_s:
                    raise TimeoutError(f"{title}: not done after {limit_s:g} s")  # noqa: TRY301
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()  # the pool waits for them
            raise
        return [each.result() for each in running]


def _begin(done: Any) -> None:
    global _done  # noqa: PLW0603  a process's own, set once
    _done = done


def _taken(done: Any) -> float:
    total = 0.0
    end_s = time.monotonic() + _INTERVAL_S
    while time.monotonic() < end_s:
        try:
            total += done.get_nowait()
        except queue.Empty:
            break
    return total
