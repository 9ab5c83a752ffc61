"""The host, its lanes and its fronts: started, killed, replaced, ended; with lanes that answer with their input."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
from tests.integration import echo_host
from tests.integration.echo_engine import MODULE, Front, begin, engine
from tests.integration.process_tools import is_running, members, open_files
from tests.integration.serving import PATIENCE_S, eventually

from dragoman.common.errors import DragomanError
from dragoman.server.engine.api import Cancel
from dragoman.server.engine.processes import link as link_module
from dragoman.server.engine.processes import supervisor as supervisor_module
from dragoman.server.errors import BundleError, ResourceUnavailable
from dragoman.server.processes import start


async def test_fronts_hear_of_models_and_reach_every_lane() -> None:
    async with engine(begin()) as held:
        first = await held.front()
        late = await held.front()  # as one that is started anew
        for front in (first, late):
            assert front.models == {
                "echo/1": (b"manifest of echo", b"t" * 300_000),
                "other/1": (b"manifest of other", b"t" * 300_000),
            }
            assert front.not_loaded == ["third"]
        assert first.pids == late.pids
        assert len(set(first.pids.values())) == 2, "lanes are for cores, not for models"
        for front in (first, late):
            for number, (lane, model) in enumerate(itertools.product(front.links, ("echo/1", "other/1"))):
                assert await front.answer(number, 7, number, lane=lane, model=model) == (7, number)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_lane_that_dies_is_replaced_and_nothing_else_is_touched(how: signal.Signals) -> None:
    with structlog.testing.capture_logs() as log:
        async with engine(begin()) as held:
            front = await held.front()
            before = dict(front.pids)
            began = time.monotonic()
            os.kill(before[1], how)
            await eventually(lambda: front.pids[1] != before[1])
            print(f"replaced within {1000 * (time.monotonic() - began):.0f} ms")
            assert await front.answer(1, 9, lane=1) == (9,)
            assert await front.answer(2, 9, lane=0) == (9,)
            assert {lane: pid for lane, pid in front.pids.items() if lane != 1} == {
                lane: pid for lane, pid in before.items() if lane != 1
            }
            [removed] = front.removed
            assert (removed.lane, removed.pid, removed.how) == (1, before[1], f"killed by {how.name}")
            assert front.num_lost_links == 1
            assert not psutil.pid_exists(before[1])
    [died] = [each for each in log if each["event"] == "lane_died"]
    assert (died["lane"], died["how"]) == (1, f"killed by {how.name}")


async def test_what_a_lane_raises_reaches_the_servers_log() -> None:
    with structlog.testing.capture_logs() as log:
        async with engine(begin()) as held:
            front = await held.front()
            before = dict(front.pids)
            front.ask(1, echo_host.EXIT)
            await eventually(lambda: front.pids[0] != before[0])
    [failed] = [each for each in log if each["event"] == "lane_failed"]
    assert (failed["lane"], failed["log_level"]) == (0, "error")
    assert "KeyError: 'surprise'" in failed["exception"]


async def test_a_host_that_dies_is_replaced_with_its_lanes() -> None:
    with structlog.testing.capture_logs() as log:
        async with engine(begin()) as held:
            fronts = [await held.front(), await held.front()]
            files, first, before = open_files(), held.supervisor.pid, dict(fronts[0].pids)
            for front in fronts:
                front.loaded.clear()
            began = time.monotonic()
            os.kill(first, signal.SIGKILL)
            for front in fronts:
                await asyncio.wait_for(front.loaded.wait(), PATIENCE_S)
                await eventually(lambda front=front: not set(front.pids.values()) & set(before.values()))  # type: ignore[misc]
            print(f"replaced within {1000 * (time.monotonic() - began):.0f} ms")
            assert members(first) == []
            for number, front in enumerate(fronts):
                assert front.num_lost_links == 2
                assert await front.answer(number, 9) == (9,)
            assert open_files() == files
            assert held.num_started == 1
    [died] = [each for each in log if each["event"] == "engine_host_died"]
    assert (died["pid"], died["how"]) == (first, "killed by SIGKILL")


async def test_many_deaths_leave_nothing_behind() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        files = open_files()
        host = psutil.Process(held.supervisor.pid)
        num_of_host = host.num_fds()
        for death in range(30):
            lane = death % 2
            pid = front.pids[lane]
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda lane=lane, pid=pid: front.pids[lane] != pid)  # type: ignore[misc]
        assert await front.answer(1, 9) == (9,)
        assert open_files() == files
        await eventually(lambda: host.num_fds() == num_of_host)  # it may be about to close a link's end
        assert sorted(members(host.pid)) == sorted([host.pid, *front.pids.values()])


async def test_a_front_that_goes_is_forgotten_and_its_sequences_are_cancelled() -> None:
    async with engine(begin()) as held:
        leaving, staying = await held.front(), await held.front()
        for front in (leaving, staying):  # an answer shows that the lane has the link, which is counted next
            assert await front.answer(40, 9) == (9,)
        num_of_lane = psutil.Process(staying.pids[0]).num_fds()
        num_of_host = psutil.Process(held.supervisor.pid).num_fds()
        leaving.ask(41, 0)
        leaving.ask(42, 0)
        assert await leaving.answer(43, 9) == (9,)
        leaving.links[0].send("echo/1", Cancel([41]))
        leaving.connection.close()
        for link in leaving.links.values():
            link.close()
        lane = psutil.Process(staying.pids[0])
        await eventually(lambda: lane.num_fds() == num_of_lane - 1)
        await eventually(lambda: psutil.Process(held.supervisor.pid).num_fds() == num_of_host - 1)
        assert await staying.answer(1, echo_host.TELL_CANCELLED) == (41, echo_host.LEFT)


async def test_a_front_that_is_gone_before_the_host_has_heard_of_it_harms_nobody() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        for number in range(1, 21):  # as front processes that are killed while they start
            held.supervisor.connect(number).close()
        later = Front()
        later.connect(held.supervisor.connect(21))
        held.fronts.append(later)
        await asyncio.wait_for(later.loaded.wait(), PATIENCE_S)
        assert await front.answer(1, 9, 8) == (9, 8)
        assert held.num_started == 0


async def test_large_requests_and_answers_pass() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        tokens = tuple(range(6, 1 << 20))
        assert await front.answer(1, *tokens) == tokens
        assert await front.answer(2, echo_host.BLOAT) == tuple(range(1 << 20))


async def test_a_lane_that_gives_no_sign_of_life_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "NUM_LOOKS", 3)
    async with engine(begin(num_lanes=3)) as held:
        front = await held.front(3, asking_interval_s=0.1)
        before = dict(front.pids)
        os.kill(before[0], signal.SIGSTOP)
        front.ask(1, echo_host.WORK, lane=1)
        for _ in range(100):  # more than its socket holds: the event loop goes on
            front.ask(2, *range(6, 4096))
        assert await front.answer(3, 9, lane=2) == (9,)
        for lane in (0, 1):
            await eventually(lambda lane=lane: front.pids[lane] != before[lane])  # type: ignore[misc]
            assert await front.answer(4 + lane, 9, lane=lane) == (9,)
        assert front.pids[2] == before[2]


async def test_a_lane_that_never_reads_is_given_up_before_it_takes_all_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "MAX_QUEUED_BYTES", 1 << 20)
    async with engine(begin()) as held:
        front = await held.front()
        pid = front.pids[0]
        os.kill(pid, signal.SIGSTOP)
        while not front.links[0].is_silent:
            front.ask(1, *range(6, 4096))
        await eventually(lambda: front.pids[0] != pid)
        assert await front.answer(2, 9) == (9,)


async def test_a_front_that_never_reads_holds_up_no_lane() -> None:
    async with engine(begin(num_lanes=1)) as held:
        stuck, other = await held.front(1), await held.front(1)
        transport = stuck.links[0]._transport
        transport.pause_reading()
        for number in range(20):  # of each 4 MiB and some
            stuck.ask(number, echo_host.BLOAT)
        assert await other.answer(1, 9) == (9,)
        pid = other.pids[0]
        await eventually(lambda: stuck.links[0]._transport.is_closing() or not transport.is_reading())
        transport.resume_reading()  # more than MAX_QUEUED_BYTES was unread: the lane has cut it off
        await eventually(lambda: stuck.num_lost_links == 1)
        assert await other.answer(2, 9) == (9,)
        assert other.pids[0] == pid


async def test_a_host_that_fails_while_it_serves_is_replaced(tmp_path: Path) -> None:
    """What it could not have the next one may have."""
    once = tmp_path / "once"
    with structlog.testing.capture_logs() as log:
        async with engine(begin(fails_once=str(once))) as held:
            front = await held.front()
            first = held.supervisor.pid
            once.touch()
            front.loaded.clear()
            os.kill(front.pids[0], signal.SIGKILL)
            await asyncio.wait_for(front.loaded.wait(), PATIENCE_S)
            await eventually(lambda: len(front.links) == 2)
            assert held.supervisor.pid != first
            assert held.failures == []
    [died] = [each for each in log if each["event"] == "engine_host_died"]
    assert died["how"].endswith(": no memory for rows")


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"fails": True}, BundleError, "what is wrong with it"),
        ({"lane_fails": True}, ResourceUnavailable, "no memory for rows"),
        ({"lane_dies": True}, ResourceUnavailable, "could not start 5 times in a row: killed by SIGSEGV"),
        ({"dies_loading": True}, DragomanError, "the engine's host died 3 times in a row: killed by SIGSEGV"),
    ],
)
async def test_what_cannot_start_is_one_error(
    options: dict[str, Any], kind: type[DragomanError], said: str
) -> None:
    with structlog.testing.capture_logs() as log:
        async with engine(begin(**options)) as held:
            await eventually(lambda: bool(held.failures))
            [error] = held.failures
            assert isinstance(error, kind)
            assert said in str(error)
            if kind is not DragomanError:
                assert held.num_started == 0
    assert sum(each["event"] == "engine_host_died" for each in log) == (3 if kind is DragomanError else 0)


PARENT = """
import asyncio, sys, time
from dragoman.server.engine.processes.supervisor import Supervisor
from tests.integration import echo_host
from tests.integration.echo_engine import begin, Engine, MODULE

async def main():
    supervisor = Supervisor(begin(**{options!r}), MODULE)
    held = Engine(supervisor)
    supervisor.watch(held)
    if {waits}:
        front = await held.front()
        front.ask(1, echo_host.WORK)  # a step that never ends
        await front.answer(2, 9, lane=1)
    print(supervisor.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def ends_with(act: Callable[["subprocess.Popen[str]"], object], *, loading: bool = False) -> float:
    """Start a server process with a host and have `act` end it; returns how long host and lanes then lived."""
    options = {"load_s": 60} if loading else {}
    program = PARENT.format(options=options, waits=not loading)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        host = int(process.stdout.readline())
        assert len(members(host)) == (1 if loading else 3)
        act(process)
        process.wait(PATIENCE_S)
        began = time.monotonic()
        while any(is_running(pid) for pid in members(host)):  # process 1 here may be slow to reap
            assert time.monotonic() < began + PATIENCE_S
        return time.monotonic() - began


@pytest.mark.parametrize("loading", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_survives_the_server(number: signal.Signals, *, loading: bool) -> None:
    assert ends_with(lambda process: process.send_signal(number), loading=loading) < 1.0


async def test_signals_of_the_terminal_and_of_a_service_manager_are_the_servers_alone() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        before = dict(front.pids)
        assert os.getpgid(held.supervisor.pid) != os.getpgid(0)  # Ctrl-C does not even reach them
        for pid in (held.supervisor.pid, *before.values()):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        for place, lane in enumerate(front.links):
            assert await front.answer(place, 9, lane=lane) == (9,)
        assert front.pids == before


async def test_the_host_is_one_thread_of_the_servers_python() -> None:
    async with engine(begin()) as held:
        await held.front()
        host = psutil.Process(held.supervisor.pid)
        assert host.num_threads() == 1
        assert host.cmdline()[-5:-3] == ["dragoman.server.engine.processes", MODULE]
        assert start._environment()["PYTHONPATH"].split(os.pathsep) == sys.path


async def test_an_ended_engine_leaves_orphans_of_others_alone() -> None:
    async with engine(begin()) as held:
        await held.front()
    # A shell ends before its child, which would be this process's now.
    shell = await asyncio.create_subprocess_exec(
        "sh", "-c", "sleep 60 >/dev/null & echo $!", stdout=subprocess.PIPE
    )
    output, _ = await shell.communicate()
    with contextlib.suppress(psutil.NoSuchProcess):
        child = psutil.Process(int(output))
        assert child.ppid() != os.getpid()
        child.kill()


async def test_a_host_that_has_served_is_started_more_often_than_one_that_never_did() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        front.loaded.clear()
        for number in range(supervisor_module.MAX_FAILED_STARTS + 1):
            os.kill(held.supervisor.pid, signal.SIGKILL)
            await eventually(lambda number=number: held.num_started == number + 1)  # type: ignore[misc]
        await asyncio.wait_for(front.loaded.wait(), PATIENCE_S)
        assert not held.failures
