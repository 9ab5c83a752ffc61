"""When and how a child process ends, for others than the owner that waits for it."""

import os
import select
import signal
import threading
import time

__all__ = ["ChildLife"]


class ChildLife:
    """Watches a child of this process from now on. Its owner still waits for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._began_s = time.monotonic()
        self._end = ""
        self._fd = os.pidfd_open(pid)
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def end(self) -> str:
        """How and when it ended, such as "SIGSEGV after 3.1 s"; "" while it runs."""
        return self._end

    def terminate(self, limit_s: float) -> str:
        """Send SIGTERM; returns how it ended, and after how long, counted from the signal."""
        self._began_s = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        return self._end if self.wait(limit_s) else f"none within {limit_s:g} s"

    def wait(self, limit_s: float) -> bool:
        """Whether it has ended within `limit_s`."""
        return self._ended.wait(limit_s)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()
        os.close(self._fd)
        seconds = time.monotonic() - self._began_s
        self._end = f"{self._how()} after {seconds:.2f} s"
        self._ended.set()

    def _how(self) -> str:
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # its owner was quicker
            return "ended"
        assert found is not None
        if found.si_code == os.CLD_EXITED:
            return f"exit code {found.si_status}"
        return signal.Signals(found.si_status).name
