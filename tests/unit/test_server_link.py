"""What a front sends a lane in one turn of its event loop goes out together, and waits for nothing else."""

import asyncio
from typing import Any

import msgspec
import pytest

from dragoman.server.engine.api import Cancel, ModelCommand
from dragoman.server.engine.processes import link as link_module
from dragoman.server.engine.processes.frames import FrameReader
from dragoman.server.engine.processes.link import MAX_UNSENT_BYTES, SocketLink


class Transport(asyncio.Transport):
    """Notes what is written, and takes none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_aborted = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.writes))

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def commands(self) -> list[list[int]]:
        """The ids of all commands in the order in which they went out; a sign of life has none."""
        contents = FrameReader().feed(memoryview(b"".join(self.writes)))
        told = [
            msgspec.msgpack.decode(each, type=ModelCommand).command if each else None for each in contents
        ]
        return [each.ids if isinstance(each, Cancel) else [] for each in told]


def linked(**options: float) -> tuple[SocketLink, Transport]:
    link, transport = SocketLink(lambda *_: None, lambda: None, **options), Transport()
    link.connection_made(transport)
    return link, transport


async def test_commands_of_one_turn_are_one_write_in_their_order() -> None:
    link, transport = linked()
    for number in range(3):
        link.send("spell/1", Cancel([number]))
    assert not transport.writes
    await asyncio.sleep(0)
    assert len(transport.writes) == 1
    link.send("spell/1", Cancel([3]))
    await asyncio.sleep(0)
    assert len(transport.writes) == 2
    assert transport.commands() == [[0], [1], [2], [3]]


async def test_what_was_sent_before_the_end_goes_out() -> None:
    link, transport = linked()
    link.send("spell/1", Cancel([1]))
    link.close()
    assert transport.is_aborted
    link.send("spell/1", Cancel([2]))
    await asyncio.sleep(0)
    assert transport.commands() == [[1]]


async def test_a_sign_of_life_is_asked_for_after_what_was_sent_before() -> None:
    link, transport = linked(asking_interval_s=0.0)
    link.send("spell/1", Cancel([1]))
    while len(commands := transport.commands()) < 2:
        await asyncio.sleep(0)
    assert commands[:2] == [[1], []]
    link.close()


async def test_what_waits_for_the_end_of_a_turn_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_QUEUED_BYTES", 4 * MAX_UNSENT_BYTES)
    link, transport = linked()
    for _ in range(64):
        link.send("spell/1", Cancel([1 << 40] * (MAX_UNSENT_BYTES // 64)))
    assert link.is_silent, "a lane that reads nothing is given up within the turn"
    assert transport.get_write_buffer_size() < 6 * MAX_UNSENT_BYTES
    await asyncio.sleep(0)
    assert transport.get_write_buffer_size() < 6 * MAX_UNSENT_BYTES
