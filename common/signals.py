"""Signals that end a process, turned into an orderly end."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["unwound_by_signals"]


class _EndedBySignal(SystemExit):  # asyncio lets a SystemExit through, and no exception of our own
    """Unwinds the process; its exit code is the one that a shell gives for the signal."""


@contextlib.contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP unwind the block, so that it clears up, where nothing else handles them.

    The process then ends with exit code 128 plus the signal's number. In another thread than the main one, which
    alone receives signals, nothing changes.
    """
    unhandled = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    ]
    if not unhandled or threading.current_thread() is not threading.main_thread():
        yield
        return
    is_ended = False

    def unwind(number: int, _: FrameType | None) -> None:
        nonlocal is_ended
        if not is_ended:  # a second one would break off the clearing up
            is_ended = True
            raise _EndedBySignal(128 + number)

    for number in unhandled:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)
