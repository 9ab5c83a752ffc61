"""The models of a front while hosts come and go, as hosts tell of them."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.engine.api import EngineFacts
from dragoman.server.engine.processes.messages import (
    ChangeTaken,
    FromFront,
    LaneAdded,
    LoadingEnded,
    ModelAdded,
    ModelLoaded,
    ModelRemoved,
    ToFront,
)
from dragoman.server.errors import EngineUnavailable
from dragoman.server.models.hosted import HostedModels
from dragoman.server.models.registry import Registry
from dragoman.server.operations.metrics import Metrics
from dragoman.server.processes.channel import Channel, packet_pair, stream_pair
from dragoman.server.processes.memory_files import memory_file

SPELL = Bundle.read(Path(__file__).parents[1] / "fixtures" / "bundles" / "spell" / "2")
KEY = "spell/2"
FACTS = EngineFacts("cpu", "none", 1, 1, 8, 1, 1, 100)
PATIENCE_S = 20.0


@dataclass
class Host:
    """A host's end of its channel with the front, and of links with lanes."""

    channel: "Channel[FromFront]"
    links: contextlib.ExitStack

    def load(self) -> None:
        content = SPELL.manifest.model_dump_json().encode(), SPELL.tokenizer_bytes()
        self.channel.send(ModelLoaded("spell", "2", FACTS), [memory_file(each) for each in content])

    def add_lane(self, pid: int) -> None:
        ours, theirs = stream_pair()
        self.links.enter_context(ours)
        self.channel.send(LaneAdded(0, pid, [KEY]), [theirs.detach()])

    def say(self, message: ToFront) -> None:
        self.channel.send(message)

    async def taken(self) -> str:
        """The model of the next change that the front says it has taken."""
        async with asyncio.timeout(PATIENCE_S):
            while (received := self.channel.receive()) is None:
                await asyncio.sleep(0.001)
        message, _ = received
        assert isinstance(message, ChangeTaken)
        return message.model


class Front:
    """A front's models, and hosts one after the other."""

    def __init__(self, sockets: contextlib.ExitStack) -> None:
        self.models = HostedModels(EngineSettings(), Metrics(1.0))
        self._sockets = sockets

    def host(self) -> Host:
        ours, theirs = packet_pair()
        channel: Channel[FromFront] = Channel(ours, FromFront)
        self._sockets.callback(channel.close)
        self.models.connect(theirs)
        return Host(channel, self._sockets)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Front, Host, Registry]]:
    """A front whose first host has loaded the model, with a lane."""
    with contextlib.ExitStack() as sockets:
        front = Front(sockets)
        try:
            host = front.host()
            host.load()
            host.add_lane(os.getpid())
            host.say(LoadingEnded())
            await asyncio.wait_for(front.models.loaded.wait(), PATIENCE_S)
            yield front, host, front.models.registry()
        finally:
            front.models.close()
            await asyncio.sleep(0)


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_version_that_is_unloaded_while_the_host_dies_can_be_loaded_anew() -> None:
    """Its old calls may still run then: their end takes nothing of the new one along."""
    async with serving() as (front, host, registry):
        with registry.lease("spell") as lease:
            old = lease.model
            host.say(ModelRemoved(KEY, PATIENCE_S))
            await eventually(lambda: "spell" not in registry)
            host.channel.close()
            later = front.host()
            later.load()
            later.add_lane(os.getpid() + 1)
            later.say(LoadingEnded())
            later.say(ModelAdded(KEY))
            await eventually(lambda: os.getpid() + 1 in front.models._lanes)
            assert "spell" not in registry, "the change before goes on"
        assert await later.taken() == KEY
        with registry.lease("spell") as lease:
            assert lease.model is not old
            lease.model.engine.check_room(1)
            lane = front.models._lanes[os.getpid() + 1]
            assert lane.models == {KEY: lease.model.engine}, "what the lane reports comes to the new one"
        with pytest.raises(EngineUnavailable):
            old.engine.check_room(1)


async def test_a_version_that_the_last_host_did_not_come_to_unload_is_gone_with_it() -> None:
    async with serving() as (front, host, registry):
        host.channel.close()
        front.host().say(LoadingEnded())
        await eventually(lambda: "spell" not in registry)
        await eventually(lambda: not front.models._models)


@pytest.mark.parametrize("change", [ModelAdded(KEY), ModelRemoved(KEY, 0.0)], ids=["added", "removed"])
async def test_the_host_hears_the_end_of_a_change_that_fails_oddly(
    monkeypatch: pytest.MonkeyPatch, change: ModelAdded | ModelRemoved
) -> None:
    async with serving() as (front, host, registry):

        def fail(*_: object) -> None:
            raise KeyError("surprise")

        with monkeypatch.context() as patch:
            patch.setattr(front.models, "_serve", fail)
            patch.setattr(front.models, "_drop", fail)
            host.say(change)
            assert await host.taken() == KEY
        assert front.models._changing is not None
        assert isinstance(front.models._changing.exception(), KeyError)
        host.say(ModelRemoved(KEY, 0.0))
        assert await host.taken() == KEY
        assert "spell" not in registry
