"""An event loop that stands still is told, also that it goes on; at last the process is ended."""

import asyncio
import threading
import time

import pytest

from dragoman.server.operations import loop_watch
from dragoman.server.operations.loop_watch import LoopWatch

PATIENCE_S = 20.0
INTERVAL_S = 0.02


class Heard:
    def __init__(self) -> None:
        self.stuck: list[bool] = []
        self.changed = threading.Event()
        self.left = threading.Event()

    def set_stuck(self, is_stuck: bool) -> None:
        self.stuck.append(is_stuck)
        self.changed.set()

    def leave(self, reason: str) -> None:
        assert reason == "the event loop gives no sign of life"
        self.left.set()


async def test_a_loop_that_stands_still_and_goes_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_watch, "MAX_SILENT_LOOKS", 10**6)
    heard = Heard()
    with LoopWatch(heard.set_stuck, heard.leave, watch_interval_s=INTERVAL_S):
        assert heard.changed.wait(PATIENCE_S)  # which is what holds up the loop
        heard.changed.clear()
        assert heard.stuck == [True]
        await asyncio.to_thread(heard.changed.wait, PATIENCE_S)
        assert heard.stuck[:2] == [True, False]
    assert not heard.left.is_set()


async def test_a_loop_that_does_not_come_back_ends_the_process() -> None:
    heard = Heard()
    with LoopWatch(heard.set_stuck, heard.leave, watch_interval_s=INTERVAL_S):
        assert heard.left.wait(PATIENCE_S)
        assert heard.stuck == [True]


async def test_nothing_is_left_of_it() -> None:
    with LoopWatch(Heard().set_stuck, Heard().leave):
        pass
    begin_s = time.monotonic()
    while any(thread.name == "loop-watch" for thread in threading.enumerate()):
        assert time.monotonic() < begin_s + PATIENCE_S
