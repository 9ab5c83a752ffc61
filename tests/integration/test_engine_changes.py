"""A host that loads and unloads versions while it serves, with lanes that answer with their input."""

import asyncio
import contextlib
import os
import signal

import psutil
import pytest
import structlog
from tests.integration.echo_engine import Engine, Front, begin, engine
from tests.integration.process_tools import members, open_files
from tests.integration.serving import eventually

from dragoman.common.errors import DragomanError, OperationError
from dragoman.server.engine.processes import supervisor as supervisor_module
from dragoman.server.engine.processes.messages import LoadVersion, UnloadVersion
from dragoman.server.engine.processes.supervisor import HostDied
from dragoman.server.errors import BundleError, ResourceUnavailable

NEW = "new/7"


async def load(held: Engine, name: str = "new", version: str = "7") -> None:
    await asyncio.wait_for(held.supervisor.change(LoadVersion(name, version)), 20)


async def unload(held: Engine, name: str = "new", version: str = "7") -> None:
    await asyncio.wait_for(held.supervisor.change(UnloadVersion(name, version)), 20)


def children(held: Engine, name: str) -> list[psutil.Process]:
    found = []
    for each in psutil.Process(held.supervisor.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.name().startswith(name):
                found.append(each)
    return found


async def check_serving(held: Engine, *fronts: Front, num_lanes: int = 2) -> None:
    """All models that there were answer on all lanes, and nothing of a change is left."""
    await eventually(lambda: len(children(held, "")) == num_lanes)
    for front in fronts:
        for lane in range(num_lanes):
            for model in ("echo/1", "other/1"):
                front.answers.pop(77, None)
                assert await front.answer(77, 5000 + lane, lane=lane, model=model) == (5000 + lane,)


async def test_new_lanes_have_the_new_version_and_take_over() -> None:
    async with engine(begin()) as held:
        fronts = [await held.front(), await held.front()]
        before = dict(fronts[0].pids)
        await load(held)
        for front in fronts:
            assert front.added == [NEW]
            assert front.models[NEW] == (b"manifest of new", b"t" * 300_000)
            assert sorted(front.retired) == sorted(before.values())
            assert not set(front.pids.values()) & set(before.values())
            for lane in (0, 1):
                assert await front.answer(lane, 9, lane=lane, model=NEW) == (9,)
        await check_serving(held, *fronts)
        late = await held.front()
        assert NEW in late.models
        assert await late.answer(5, 9, lane=1, model=NEW) == (9,)


async def test_a_lane_that_retires_ends_when_all_fronts_have_closed_their_links() -> None:
    async with engine(begin()) as held:
        holding, other = await held.front(), await held.front()
        holding.keeps_links = True
        before, links = dict(holding.pids), dict(holding.links)
        holding.ask(1, 0)  # which is never answered
        with structlog.testing.capture_logs() as log:
            await load(held)
            await eventually(lambda: other.num_lost_links == 2)
            assert holding.num_lost_links == 0
            assert all(psutil.pid_exists(pid) for pid in before.values())
            for link in links.values():
                link.close()
            await eventually(lambda: len(holding.removed) == 2)
        assert {(each.pid, each.how) for each in holding.removed} == {
            (pid, "exit code 0") for pid in before.values()
        }
        assert not any(each["log_level"] in {"error", "warning"} for each in log), "there is no alarm"
        await check_serving(held, holding, other)


async def test_a_lane_that_does_not_come_to_its_end_is_ended() -> None:
    start = begin()
    async with engine(type(start)(start.directory, start.settings, None, 0.3)) as held:
        front = await held.front()
        front.keeps_links = True
        with structlog.testing.capture_logs() as log:
            await load(held)
            await eventually(lambda: len(front.removed) == 2)
        assert {each.how for each in front.removed} == {"killed by SIGKILL"}
        assert sum(each["event"] == "lane_killed" for each in log) == 2
        await check_serving(held, front)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("crash", BundleError, "crash/7 ended the process that checked it: killed by SIGSEGV"),
        ("raise", BundleError, "raise/7: unexpected KeyError while it was checked"),
        ("lack", ResourceUnavailable, "no memory for it"),
        ("other file", BundleError, "it was changed"),
        ("odd", OperationError, "odd/7 cannot be loaded: unexpected KeyError"),
        ("dead lane", ResourceUnavailable, "could not start 5 times in a row: killed by SIGSEGV"),
        ("failing lane", ResourceUnavailable, "no memory for rows"),
        ("echo", ResourceUnavailable, "echo/7 is loaded already"),
    ],
)
async def test_what_cannot_be_loaded_changes_nothing_and_says_why(
    name: str, kind: type[DragomanError], said: str
) -> None:
    async with engine(begin()) as held:
        front = await held.front()
        if name == "echo":
            await load(held, "echo")
        before, files = dict(front.pids), psutil.Process(held.supervisor.pid).num_fds()
        with pytest.raises(kind, match=said):
            await load(held, name)
        assert front.pids == before
        assert not front.added or name == "echo"
        await check_serving(held, front)
        assert psutil.Process(held.supervisor.pid).num_fds() <= files
        await load(held)
        assert await front.answer(9, 8, model=NEW) == (8,)


async def test_a_checking_child_that_is_killed_changes_nothing() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        changing = asyncio.create_task(held.supervisor.change(LoadVersion("slow", "1")))
        await eventually(lambda: len(children(held, "model-check")) == 1)
        assert await front.answer(1, 9) == (9,), "the host and its lanes go on meanwhile"
        children(held, "model-check")[0].kill()
        with pytest.raises(
            ResourceUnavailable, match="slow/1 ended the process that checked it: killed by SIGKILL"
        ):
            await changing
        await check_serving(held, front)


async def test_a_check_that_never_ends_is_ended() -> None:
    async with engine(begin(max_check_s=0.3)) as held:
        front = await held.front()
        with pytest.raises(BundleError, match="slow/1 ended the process that checked it: killed by SIGKILL"):
            await load(held, "slow", "1")
        await check_serving(held, front)


async def test_new_lanes_that_never_come_to_work_are_ended() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        with pytest.raises(ResourceUnavailable, match="could not start 5 times in a row: killed by SIGKILL"):
            await load(held, "stopped lane")
        await check_serving(held, front)


async def test_a_host_that_cannot_be_replaced_for_an_odd_reason_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with engine(begin()) as held:
        await held.front()

        def fail(_: str) -> None:
            raise KeyError("surprise")

        monkeypatch.setattr(supervisor_module, "spawn", fail)
        os.kill(held.supervisor.pid, signal.SIGKILL)
        await eventually(lambda: bool(held.failures))
        assert [str(each) for each in held.failures] == [
            "the engine's host cannot be replaced: unexpected KeyError"
        ]
        with pytest.raises(HostDied):
            await load(held)


async def test_a_new_lane_that_is_killed_while_it_starts_is_started_again() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        before = set(front.pids.values())
        changing = asyncio.create_task(load(held, "slow lane"))
        killed: list[int] = []

        def kill_one() -> bool:
            for each in children(held, "lane-"):
                if each.pid not in before and not killed:
                    each.kill()
                    killed.append(each.pid)
            return bool(killed)

        await eventually(kill_one)
        await changing
        assert not set(front.pids.values()) & {*before, *killed}
        await check_serving(held, front)
        assert await front.answer(9, 8, lane=1, model="slow lane/7") == (8,)


async def test_a_host_that_dies_during_a_load_leaves_what_was_served_to_the_next() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        held.supervisor.reload(["echo/1", "other/1"])
        front.loaded.clear()
        changing = asyncio.create_task(held.supervisor.change(LoadVersion("slow", "1")))
        await eventually(lambda: len(children(held, "model-check")) == 1)
        group = held.supervisor.pid
        os.kill(group, signal.SIGKILL)
        with pytest.raises(HostDied):
            await changing
        await asyncio.wait_for(front.loaded.wait(), 20)
        await eventually(lambda: members(group) == [])
        await check_serving(held, front)
        await load(held)
        assert await front.answer(9, 8, model=NEW) == (8,)


async def test_an_unloaded_version_is_gone_from_lanes_and_for_later_fronts() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        await load(held)
        pids = dict(front.pids)
        await unload(held)
        assert front.removed_models == [NEW]
        assert front.pids == pids, "nothing is forked"
        await check_serving(held, front)
        assert NEW not in (await held.front()).models
        with pytest.raises(ResourceUnavailable, match="new/7 is not loaded"):
            await unload(held)
        os.kill(front.pids[0], signal.SIGKILL)
        await eventually(lambda: front.pids[0] != pids[0])
        await check_serving(held, front)


async def test_a_front_that_has_gone_is_not_waited_for() -> None:
    async with engine(begin()) as held:
        front, deaf = await held.front(), await held.front()
        deaf.is_deaf = True
        changing = asyncio.create_task(load(held))
        await eventually(lambda: front.added == deaf.added == [NEW])
        assert not changing.done()
        deaf.connection.close()
        await changing
        await check_serving(held, front)


async def test_changes_are_made_one_after_the_other() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        host = psutil.Process(held.supervisor.pid)
        num_of_host, files = host.num_fds(), open_files()
        for version in range(20):
            await load(held, version=str(version))
            assert await front.answer(version, 9, lane=1, model=f"new/{version}") == (9,)
            if version:
                await unload(held, version=str(version - 1))
        await unload(held, version="19")
        await check_serving(held, front)
        await eventually(lambda: host.num_fds() == num_of_host)
        await eventually(lambda: open_files() == files)
        await eventually(lambda: len(members(host.pid)) == 3)
