"""Log lines on their way to standard error: a bounded queue and the thread that writes them.

A log line is never worth a call. Where standard error is not read, is full or is gone, lines are dropped and
counted; nobody but the writing thread waits.
"""

import contextlib
import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["DroppedLinesCollector", "LogStream", "LogWriter", "descriptor_writer"]

MAX_QUEUED_CHARACTERS = 1 << 20
MAX_WRITE_CHARACTERS = 1 << 16
"""The most characters of one write: they are lost when it fails."""


class LogWriter:
    """Hands lines to `write` in their order, from a thread of its own.

    Attributes:
        num_dropped: Lines that were not written.
    """

    def __init__(self, write: Callable[[str], None], max_characters: int = MAX_QUEUED_CHARACTERS) -> None:
        """`write` may block for ever and may raise OSError or ValueError; it is called from one thread."""
        self.num_dropped = 0
        self._write = write
        self._max_characters = max_characters
        self._lines: deque[str] = deque()
        self._num_characters = 0
        self._is_writing = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, line: str) -> None:
        """Queue `line`, or drop it when the queue is full. Returns at once."""
        with self._changed:
            if self._num_characters + len(line) > self._max_characters:
                self.num_dropped += 1
                return
            self._lines.append(line)
            self._num_characters += len(line)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until every line is written or dropped, at most `timeout_s`; returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._lines or self._is_writing), timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                lines = self._take()
                self._is_writing = True
            try:
                self._write("".join(lines))
            except Exception:  # noqa: BLE001  there is no place left to say it
                with self._changed:  # `put` counts here too
                    self.num_dropped += len(lines)

    def _take(self) -> list[str]:
        lines: list[str] = []
        num_characters = 0
        while self._lines and num_characters < MAX_WRITE_CHARACTERS:
            lines.append(self._lines.popleft())
            num_characters += len(lines[-1])
        self._num_characters -= num_characters
        return lines


class LogStream(io.TextIOBase):
    """A text stream whose lines go to a `LogWriter`: stands in for `sys.stderr`."""

    def __init__(self, writer: LogWriter, *, is_terminal: bool) -> None:
        self._writer = writer
        self._is_terminal = is_terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in the stubs
        """Lines are written as UTF-8."""
        return "utf-8"

    def writable(self) -> bool:
        """It is for writing only."""
        return True

    def isatty(self) -> bool:
        """Whether the lines end on a terminal."""
        return self._is_terminal

    def write(self, text: str) -> int:
        """Queue `text`; never blocks and never fails."""
        if text:
            self._writer.put(text)
        return len(text)


class DroppedLinesCollector(Collector):
    """The counter of a writer's dropped lines, read at every scrape."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        """One series without labels."""
        yield CounterMetricFamily(
            "dragoman_log_lines_dropped",
            "Log lines that standard error did not take.",
            value=self._writer.num_dropped,
        )


def descriptor_writer(descriptor: int) -> Callable[[str], None]:
    """A `write` for `LogWriter` that goes to a file descriptor, past Python's buffers and their locks."""

    def write(text: str) -> None:
        data = memoryview(text.encode(errors="backslashreplace"))
        while data:
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(descriptor, data) :]
                continue
            poll = select.poll()  # another process has made the pipe non-blocking
            poll.register(descriptor, select.POLLOUT)
            poll.poll()

    return write
