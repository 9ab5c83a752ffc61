"""An orderly end on SIGTERM or Ctrl-C: the step at hand is finished and saved, then the process leaves."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopRequest", "StopRequestedError"]


class StopRequestedError(Exception):
    """A signal came in while nothing was under way that must be finished."""


class StopRequest:
    """Whether a signal has asked for an end. A context manager: signals are caught for as long as it lasts.

    Only the first is: a second Ctrl-C ends the process in the ordinary way.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._raises = False

    @property
    def interrupted(self) -> bool:
        """Whether it was a person at the terminal who asked."""
        return self.signal == signal.SIGINT

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch SIGTERM and SIGINT."""
        before = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that changes nothing worth keeping: a signal ends it where it stands.

        Raises:
            StopRequestedError: a signal came in, now or before.
        """
        self._raises = True
        try:
            if self.signal is not None:
                raise StopRequestedError
            yield
        finally:
            self._raises = False

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if self._raises:
            self._raises = False
            raise StopRequestedError
