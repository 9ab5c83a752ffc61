"""Lanes that are threads, watched by one more: a stuck one is noticed, but nothing can end it."""

import threading
from collections.abc import Callable, Sequence

from dragoman.server.engine.watchdog import NUM_LOOKS
from dragoman.server.processes.silence import Silence

__all__ = ["Signs", "ThreadWatch"]


class Signs:
    """Signs of life that a lane's thread gives between two turns.

    Attributes:
        count: of those given.
        is_idle: whether the thread waits for work, or has ended.
    """

    __slots__ = ("count", "is_idle")

    def __init__(self) -> None:
        self.count = 0
        self.is_idle = True


class ThreadWatch:
    """Looks at the signs of lanes from `start` to `close`."""

    def __init__(
        self, signs: Sequence[Signs], patience_s: Callable[[], float], on_stuck: Callable[[int], object]
    ) -> None:
        """`on_stuck` is called once, in the watching thread, with a lane that gave no sign for `patience_s`."""
        self._signs = signs
        self._patience_s = patience_s
        self._on_stuck = on_stuck
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lane-watch", daemon=True)

    def start(self) -> None:
        """Begin to look.

        Raises:
            RuntimeError: the system has no thread left for this process.
        """
        self._thread.start()

    def close(self) -> None:
        """Look no longer. Harmless when it was not started."""
        self._is_over.set()

    def join(self, timeout_s: float) -> None:
        """After `close`: wait for the watching thread, unless this is it."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _watch(self) -> None:
        silences = [Silence(signs.count) for signs in self._signs]
        while not self._is_over.wait(self._patience_s() / NUM_LOOKS):
            for lane, (signs, silence) in enumerate(zip(self._signs, silences, strict=True)):
                if silence.look(signs.count, is_idle=signs.is_idle) == NUM_LOOKS:
                    self._on_stuck(lane)
