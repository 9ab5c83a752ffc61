"""A host that is stopped is noticed while its lanes go on answering; one that works is left alone, however slow."""

import asyncio
import os
import signal
import sys
from functools import partial

import pytest
import structlog.testing
from tests.integration.echo_engine import begin, engine
from tests.integration.serving import PATIENCE_S, eventually

from dragoman.server.engine.processes import host_watch
from dragoman.server.engine.processes.host_watch import MAX_UNANSWERED, HostWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="lanes in processes need Linux")


async def test_a_host_that_is_stopped_is_replaced_and_its_lanes_answer_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_watch, "PROBE_INTERVAL_S", 0.05)
    with structlog.testing.capture_logs() as log:
        async with engine(begin()) as held:
            front = await held.front()
            first = held.supervisor.pid
            os.kill(first, signal.SIGSTOP)
            assert await front.answer(1, 9) == (9,)
            front.loaded.clear()
            await asyncio.wait_for(front.loaded.wait(), PATIENCE_S)
            await eventually(lambda: len(front.links) == 2)
            assert held.supervisor.pid != first
            assert await front.answer(2, 9) == (9,)
            assert held.num_started == 1
    assert [each["pid"] for each in log if each["event"] == "engine_host_silent"] == [first]
    assert [each["how"] for each in log if each["event"] == "engine_host_died"] == ["killed by SIGKILL"]


async def test_a_host_that_works_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_watch, "PROBE_INTERVAL_S", 0.005)
    async with engine(begin()) as held:
        front = await held.front()
        first, watch = held.supervisor.pid, held.supervisor._signs
        asked, probe = 0, watch._ask

        def ask() -> None:
            nonlocal asked
            asked += 1
            probe()

        watch._ask = ask
        await eventually(lambda: asked > 3 * MAX_UNANSWERED)
        assert (held.supervisor.pid, held.num_started) == (first, 0)
        assert await front.answer(1, 9) == (9,)


async def test_loading_first_takes_its_time_and_the_next_loading_ten_times_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_watch, "PROBE_INTERVAL_S", 0.001)
    asked, given_up = 0, asyncio.Event()

    def ask() -> None:
        nonlocal asked
        asked += 1

    watch = HostWatch(ask, given_up.set)
    watch.begin()
    await eventually(lambda: asked >= 2 * MAX_UNANSWERED)
    first = asked
    watch.note_sign()  # models are loaded
    assert not given_up.is_set()
    watch.begin()  # another host
    await asyncio.wait_for(given_up.wait(), PATIENCE_S)
    assert asked == first + 10 * first
    watch.end()


@pytest.mark.parametrize("num_hosts", [1, 2])
async def test_once_a_host_serves_its_silence_is_short(
    monkeypatch: pytest.MonkeyPatch, num_hosts: int
) -> None:
    """However long its loading took, or that of a host before it."""
    monkeypatch.setattr(host_watch, "PROBE_INTERVAL_S", 0.001)
    asked, given_up = 0, asyncio.Event()

    def ask() -> None:
        nonlocal asked
        asked += 1

    def has_asked(least: int) -> bool:
        return asked >= least

    watch = HostWatch(ask, given_up.set)
    for _ in range(num_hosts):
        watch.begin()
        await eventually(partial(has_asked, asked + 2 * MAX_UNANSWERED))
        watch.note_sign()
    before = asked
    await asyncio.wait_for(given_up.wait(), PATIENCE_S)
    assert asked - before == MAX_UNANSWERED
    watch.end()


async def test_a_host_that_loads_one_more_version_may_be_silent_as_long_as_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_watch, "PROBE_INTERVAL_S", 0.001)
    asked, given_up, answers = 0, asyncio.Event(), True

    def ask() -> None:
        nonlocal asked
        asked += 1
        if answers:
            watch.note_sign()

    watch = HostWatch(ask, given_up.set)
    watch.begin()
    watch.note_sign()
    watch.begin_change()
    await eventually(lambda: asked >= 2 * MAX_UNANSWERED)  # a child tries it
    answers, tried = False, asked
    await asyncio.wait_for(given_up.wait(), PATIENCE_S)
    assert asked - tried == 10 * tried
    watch.begin()
    answers = True
    watch.note_sign()
    watch.begin_change()
    watch.end_change()
    given_up.clear()
    answers, before = False, asked
    await asyncio.wait_for(given_up.wait(), PATIENCE_S)
    assert asked - before == MAX_UNANSWERED
    watch.end()
