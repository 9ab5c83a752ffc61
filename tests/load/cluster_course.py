"""What happens to several hosts while callers call them, and what becomes of the calls (`cluster.py`)."""

import argparse
import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from tests.load.metrics_page import total
from tests.load.network import Network
from tests.load.rolling import Crowd
from tests.load.scene import Scene

from dragoman.client import AsyncClient, ChannelSettings

__all__ = ["EVENTS", "MAX_DEVIATION", "Callers", "Course", "Host", "Spread"]

EVENTS = {"restart": "rolling restart", "cut": "one host cut off", "stop": "one host stands still"}
DRAIN_DELAY_S = 3.0
CALLS_AT_ONCE = 2
"""Of a client, beside a stream."""
MAX_DEVIATION = 0.1
EVEN_WITHIN_S = 60.0
CALLS_OF_A_WINDOW = 200
"""For each server: so many calls have to end before their spread is judged."""


class Host(Scene):
    """A server on a host of its own, at the usual ports."""

    def __init__(self, models: Path, network: Network, name: str) -> None:
        super().__init__(models, ("server.host=0.0.0.0", f"server.drain_delay_s={DRAIN_DELAY_S}"))
        self.name = name
        self.address, self.enter = network.addresses[name], network.enter(name)
        self.port, self.metrics_port = 8500, 8002

    def num_calls(self) -> float:
        """Calls that have ended since the server's start."""
        return total(self.metrics_port, "requests_total", host=self.address)


@dataclass(frozen=True)
class Spread:
    """How calls were spread at last, and after how many seconds they were even."""

    shares: Sequence[float]
    seconds: float

    @property
    def deviation(self) -> float:
        """The largest one from an even share, as a part of it."""
        return max(abs(share * len(self.shares) - 1) for share in self.shares)


@dataclass
class Callers(Crowd):
    """Callers with one client, of one kind of call.

    Attributes:
        number: of them.
        repeats: whether the client repeats calls.
        streams: whether they ask for streams.
    """

    number: int = 1
    repeats: bool = True
    streams: bool = False

    def may_lose(self, way: str, event: str) -> bool:
        """Whether the event may cost each of them a call."""
        return (way == "nginx" and not self.repeats) or (event == "cut" and self.streams)

    def lost(self, event: str) -> Counter[str]:
        """How calls failed in the event or after it, without wrong answers."""
        failed = self.failed(EVENTS[event]) + self.failed(_after(event))
        return Counter({told: count for told, count in failed.items() if not told.endswith(": wrong")})

    def failed(self, step: str = "") -> Counter[str]:
        """How calls failed, in `step` or in all."""
        return Counter(
            {
                f"{each}: {what}": count
                for (each, what), count in self.outcomes.items()
                if what != "right" and step in {"", each}
            }
        )


@dataclass
class Course:
    """What happens to the hosts while callers call in one way.

    Attributes:
        spreads: by the step that they were measured in.
        back_s: of each restart, seconds from readiness until calls came again.
    """

    hosts: Sequence[Host]
    network: Network
    options: argparse.Namespace
    tell: Callable[[str], None]
    callers: list[Callers] = field(default_factory=list)
    spreads: dict[str, Spread] = field(default_factory=dict)
    back_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    async def run(self, target: str, *, some_are_plain: bool) -> None:
        """Call at `target` and let all events happen, one after another."""
        async with contextlib.AsyncExitStack() as stack:
            calls = []
            for number in range(self.options.clients):
                repeats = not some_are_plain or number % 2 == 1
                settings = ChannelSettings() if repeats else ChannelSettings(max_attempts=1)
                client = await stack.enter_async_context(AsyncClient(target, settings=settings))
                unary = Callers(client, pause_s=self.options.pause, repeats=repeats, number=CALLS_AT_ONCE)
                stream = Callers(client, pause_s=self.options.pause, repeats=repeats, streams=True)
                self.callers += [unary, stream]
                calls += [unary.translate] * unary.number + [stream.generate]
            self._begin("before")
            tasks = [asyncio.create_task(call()) for call in calls]
            try:
                await self._become_even("before")
                happen = {"restart": self._restart, "cut": self._cut, "stop": self._stop}
                for event in self.options.events:
                    self._begin(EVENTS[event])
                    await happen[event]()
                    self._begin(_after(event))
                    await self._become_even(_after(event))
            finally:
                for each in self.callers:
                    each.is_over = True
                await asyncio.gather(*tasks)

    def _begin(self, step: str) -> None:
        for each in self.callers:
            each.step = step
        self.tell(step)

    async def _restart(self) -> None:
        for host in self.hosts:
            code = await asyncio.to_thread(host.stop)
            if code:
                self.problems.append(f"{host.name} ended with exit code {code}")
            await asyncio.to_thread(host.start)
            ready_s, num_before = time.monotonic(), await asyncio.to_thread(host.num_calls)
            while await asyncio.to_thread(host.num_calls) == num_before:
                if time.monotonic() > ready_s + EVEN_WITHIN_S:
                    self.problems.append(f"{host.name} gets no calls {EVEN_WITHIN_S:g} s after its restart")
                    break
                await asyncio.sleep(0.1)
            self.back_s.append(time.monotonic() - ready_s)

    async def _cut(self) -> None:
        name = self.hosts[0].name
        await asyncio.to_thread(self.network.cut_off, name)
        await asyncio.sleep(self.options.cut)
        await asyncio.to_thread(self.network.join, name)

    async def _stop(self) -> None:
        processes = self.hosts[1].tree.all()
        for process in processes:
            process.suspend()
        try:
            await asyncio.sleep(self.options.stop)
        finally:
            for process in processes:
                process.resume()

    async def _become_even(self, step: str) -> None:
        """Return when all servers get as many calls as each other, or when that takes too long."""
        began_s = time.monotonic()
        while True:
            window_s = time.monotonic() - began_s
            spread = Spread(await self._shares(), window_s)
            if spread.deviation <= MAX_DEVIATION:
                break
            if window_s > EVEN_WITHIN_S:
                spread = Spread(spread.shares, inf)
                break
        self.spreads[step] = spread

    async def _shares(self) -> list[float]:
        before = await self._counts()
        while True:
            await asyncio.sleep(0.2)
            ended = [now - then for now, then in zip(await self._counts(), before, strict=True)]
            if sum(ended) >= CALLS_OF_A_WINDOW * len(self.hosts):
                return [each / sum(ended) for each in ended]

    async def _counts(self) -> list[float]:
        return list(await asyncio.gather(*(asyncio.to_thread(host.num_calls) for host in self.hosts)))


def _after(event: str) -> str:
    return f"after: {EVENTS[event]}"
