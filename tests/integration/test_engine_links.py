"""Links between fronts and lanes that end while both processes live, and fronts that go at once."""

import os
from collections.abc import Callable
from typing import Any

from tests.integration.echo_engine import begin, engine
from tests.integration.process_tools import open_files
from tests.integration.serving import BUNDLES, eventually, serving
from tests.integration.test_server_processes import IN_PROCESSES, Request, models_of, pids_of


async def test_a_front_that_ends_before_it_is_told_anything_ends_no_host() -> None:
    async with engine(begin()) as held:
        front = await held.front()
        host = held.supervisor.pid
        for number in range(100, 110):
            held.supervisor.connect(number).close()
        assert len((await held.front()).links) == 2
        assert await front.answer(1, 9) == (9,)
        assert held.supervisor.pid == host
        assert held.num_started == 0


async def test_a_front_gets_another_link_with_a_lane_that_lives() -> None:
    async with serving(BUNDLES, *IN_PROCESSES, "engine.lanes=1") as served:
        hosted = models_of(served)._models
        [lane] = hosted._lanes.values()
        link, pids = lane.link, pids_of(served)
        assert link is not None
        link.close()
        answer = await served.translation.Translate(Request(model="spell", inputs=["12"]), timeout=10)
        assert answer.translations[0].text == "one two"
        assert link.lost.done()
        assert pids_of(served) == pids, "the same process answers"


async def test_a_lane_that_comes_without_its_descriptor_is_asked_for_again() -> None:
    async with engine(begin(num_lanes=1)) as held:
        front, other = await held.front(1), await held.front(1)
        before, number = front.links[0], len(open_files())
        channel: Any = front.connection._channel
        channel.receive = LosesFirstDescriptors(channel.receive)
        front.connection.request_link(front.pids[0])
        await eventually(lambda: front.links[0] is not before)
        assert channel.receive.has_lost
        assert await front.answer(1, 9) == (9,)
        assert await other.answer(1, 9) == (9,)
        assert len(open_files()) == number


class LosesFirstDescriptors:
    """What a process hears that may open no more files when the first descriptors come."""

    def __init__(self, receive: Callable[[], Any]) -> None:
        self._receive = receive
        self.has_lost = False

    def __call__(self) -> Any:
        received = self._receive()
        if received is None or self.has_lost:
            return received
        message, descriptors = received
        for descriptor in descriptors:
            os.close(descriptor)
        self.has_lost = True
        return message, []
