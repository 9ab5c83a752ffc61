"""Signals that stop the server or have it read its settings again, and the end of its process.

Python's own handlers run in the main thread, between two lines of whatever it does, and not at all while it is
inside a native library. So they do nothing here. The interpreter also writes each signal's number to a socket,
at once and from whichever thread got the signal; a thread of this module reads it and acts.

    SIGTERM, SIGINT   the server drains; a watchdog ends the process when the drain outlasts its time
    a second one      the process ends at once, with exit code 128 + the signal's number
    SIGHUP            settings are read again; where it says that the terminal is gone, it is as SIGTERM
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Self

__all__ = ["EXIT_BROKEN", "EXIT_OVERDUE", "StopSignals", "open_closed_streams"]

EXIT_OVERDUE = 1
"""The server had to stop and did not within its time."""
EXIT_BROKEN = 1
"""The process could not go on: short of memory, or one of its threads died."""

START_LIMIT_S = 10.0
"""Within this time the process ends when the first signal comes before the drain's time is known."""


_LEAVING_S = 2.0
"""How long `before_leaving` may take."""


class StopSignals:
    """Waits for SIGTERM, SIGINT and SIGHUP, from its making to the end of its `with` block.

    Make it in the main thread.

    The system sends SIGHUP also to what was started in a terminal that is closed, which then has no terminal any more.
    SIGHUP stays ignored where it is ignored when the process starts (`nohup`). SIGQUIT, SIGUSR1 and SIGUSR2
    keep their defaults: they end the process at once.

    Attributes:
        limit_s: How long after the first signal the process may live.
        before_leaving: Called before the process ends at once, with why; must return soon.
    """

    def __init__(self) -> None:
        self.limit_s = START_LIMIT_S
        self._leaving = threading.Lock()  # never given back
        self.before_leaving: Callable[[str], None] = _say_nothing
        self.first: signal.Signals | None = None
        self._on_stop: Callable[[], object] | None = None
        self._on_reload: Callable[[], object] = _do_nothing_yet
        self._has_terminal = _has_terminal()
        self._lock = threading.Lock()
        self._is_closing = False
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        # Nothing else writes to this socket, so it never is too full for a signal.
        self._wakeup_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._handlers_before = {
            number: signal.signal(number, _do_nothing)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
        }
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop waiting; signals do again what they did before."""
        self._is_closing = True
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._sender.shutdown(socket.SHUT_WR)
        self._thread.join()
        self._sender.close()
        self._receiver.close()

    def call_on_stop(self, on_stop: Callable[[], object]) -> None:
        """Have `on_stop` called at the first signal, from another thread; at once if that has come."""
        with self._lock:
            self._on_stop = on_stop
            has_come = self.first is not None
        if has_come:
            on_stop()

    def call_on_reload(self, on_reload: Callable[[], object]) -> None:
        """Have `on_reload` called at each SIGHUP from now on, from another thread; in a drain SIGHUP does nothing."""
        self._on_reload = on_reload

    def leave(self, code: int, reason: str) -> NoReturn:
        """End the process at once. Nothing is torn down that a native thread may still use."""
        if not self._leaving.acquire(timeout=_LEAVING_S):  # another thread leaves already, and says why
            os._exit(code)
        try:
            self.before_leaving(reason)
        finally:
            os._exit(code)

    def _run(self) -> None:
        try:
            while (first := self._wait()) is signal.SIGHUP and not self._has_hung_up():
                self._on_reload()
            if first is None:
                return
            with self._lock:
                self.first = first
                on_stop = self._on_stop
            if on_stop is not None:
                on_stop()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
            while (second := self._wait()) is signal.SIGHUP:  # there is nothing to reload any more
                pass
            if second is None:
                return
            self.leave(128 + second, f"{second.name} came as the second signal")
        except BaseException:  # noqa: BLE001  without this thread nothing could stop the process any more
            os._exit(EXIT_BROKEN)

    def _wait(self) -> signal.Signals | None:
        """The next of the signals; None when there will be no other."""
        while byte := self._receiver.recv(1):
            if byte[0] in self._handlers_before:  # other handlers' numbers come here as well
                return signal.Signals(byte[0])
        return None

    def _has_hung_up(self) -> bool:
        """Whether the terminal is gone that the process was started in."""
        return self._has_terminal and not _has_terminal()

    def _watch(self) -> None:
        begin_s = time.monotonic()
        while (remaining_s := begin_s + self.limit_s - time.monotonic()) > 0:
            time.sleep(min(remaining_s, 1.0))  # `limit_s` may be set meanwhile
            if self._is_closing:
                return
        self.leave(EXIT_OVERDUE, f"the server did not stop within {self.limit_s:g} s of {self._name}")

    @property
    def _name(self) -> str:
        return "the signal" if self.first is None else self.first.name


def open_closed_streams() -> None:
    """Open the null device in the place of standard streams that are closed (`<&-`, `2>&-`).

    Otherwise the next socket gets the stream's number, and what a native library writes to standard error
    goes to a client.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  a descriptor, for good


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Does nothing with the signal. The default would end the process."""


def _do_nothing_yet() -> None:
    """Before there is anything to reload."""


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _say_nothing(reason: str) -> None:
    """Before there is a log."""
