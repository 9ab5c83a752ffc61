"""Several hosts under load: each is restarted, one is cut off, one stands still. No call may fail.

    python -m tests.load.cluster
    python -m tests.load.cluster --ways envoy --events restart

Each server runs on a host of its own, a network namespace. Callers reach the servers in three ways: by our client's
balancer over all addresses, and through nginx and Envoy with the files of docs/examples/gateways. Half of the clients
of a gateway repeat nothing. All ask for translations and streams of generated text all the time, and compare each
answer. Meanwhile

- each server is told to stop (SIGTERM), ends its calls, and starts again; the next one's turn comes when the one
  before takes calls again;
- one host is cut off from the network for a while: no packet comes any more, not even the end of a connection;
- all processes of one host stand still (SIGSTOP) for five seconds.

A stream that is under way on the host that is cut off may be lost. So may a call through nginx whose client repeats
nothing: nginx sends no call again that a server has. No other call may fail. Before and after each event the servers
have to get as many calls as each other. It needs root, and `ip`, `unshare` and `nsenter`.
"""

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from benchmarks.report import add_json_option, argument_parser, positive
from tests.integration.serving import BUNDLES
from tests.load.crowd import progress_bar
from tests.load.gateways import GATEWAYS, gateway, why_missing
from tests.load.metrics_page import total
from tests.load.network import Network, enter_own_network, why_impossible
from tests.load.report import Report, Table, at_most, equals
from tests.load.rolling import Crowd
from tests.load.scene import Scene

from dragoman.client import AsyncClient, ChannelSettings

BALANCER = "client"
WAYS = (BALANCER, *GATEWAYS)
EVENTS = {"restart": "rolling restart", "cut": "one host cut off", "stop": "one host stands still"}
SERVERS = ("dragoman-a", "dragoman-b", "dragoman-c")
GATEWAY = "gateway"
TITLES = {BALANCER: "By our client's balancer", "nginx": "Through nginx", "envoy": "Through Envoy"}
DRAIN_DELAY_S = 3.0
CALLS_AT_ONCE = 2
"""Of a client, beside a stream."""
MAX_DEVIATION = 0.1
MAX_CALL_S = 30.0
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
class Course:
    """What happens to the hosts while callers call in one way.

    Attributes:
        repeating: callers of translations, whose client repeats calls.
        plain: callers of translations, whose client repeats nothing.
        streams: callers of generated text, with both kinds of clients.
        spreads: by the step that they were measured in.
        back_s: of each restart, seconds from readiness until calls came again.
    """

    hosts: Sequence[Host]
    network: Network
    options: argparse.Namespace
    tell: Callable[[str], None]
    repeating: list[Crowd] = field(default_factory=list)
    plain: list[Crowd] = field(default_factory=list)
    streams: list[Crowd] = field(default_factory=list)
    spreads: dict[str, Spread] = field(default_factory=dict)
    back_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def crowds(self) -> list[Crowd]:
        """All callers."""
        return [*self.repeating, *self.plain, *self.streams]

    async def run(self, target: str, *, some_are_plain: bool) -> None:
        """Call at `target` and let all events happen, one after another."""
        async with contextlib.AsyncExitStack() as stack:
            calls = []
            for number in range(self.options.clients):
                is_plain = some_are_plain and number % 2 == 0
                settings = ChannelSettings(max_attempts=1) if is_plain else ChannelSettings()
                client = await stack.enter_async_context(AsyncClient(target, settings=settings))
                unary, stream = (Crowd(client, pause_s=self.options.pause) for _ in range(2))
                (self.plain if is_plain else self.repeating).append(unary)
                self.streams.append(stream)
                calls += [unary.translate] * CALLS_AT_ONCE + [stream.generate]
            self._begin("before")
            tasks = [asyncio.create_task(call()) for call in calls]
            await self._become_even("before")
            happen = {"restart": self._restart, "cut": self._cut, "stop": self._stop}
            for event in self.options.events:
                self._begin(EVENTS[event])
                await happen[event]()
                self._begin(f"after: {EVENTS[event]}")
                await self._become_even(f"after: {EVENTS[event]}")
            for crowd in self.crowds:
                crowd.is_over = True
            await asyncio.gather(*tasks)

    def _begin(self, step: str) -> None:
        for crowd in self.crowds:
            crowd.step = step
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


def describe(way: str, course: Course, report: Report) -> None:
    """Add what came of one way of calling."""
    crowds = course.crowds
    rows = []
    for step in dict.fromkeys(step for crowd in crowds for step, _ in crowd.outcomes):
        right = sum(crowd.outcomes[step, "right"] for crowd in crowds)
        failed = sum(sum(_failed(crowd, step).values()) for crowd in crowds)
        slowest_s = max(crowd.slowest_s.get(step, 0.0) for crowd in crowds)
        rows.append(
            [step, f"{right:,}", f"{failed:,}", f"{slowest_s:.2f}", *_spread(course.spreads.get(step))]
        )
    columns = ["meanwhile", "right", "failed or wrong", "slowest call in s", "calls of each server in %"]
    report.tables.append(Table(TITLES[way], [*columns, "even after s"], rows))
    fragile = [*course.streams, *(course.plain if way == "nginx" else [])]
    steps = (EVENTS["cut"], f"after: {EVENTS['cut']}")
    lost = sum((_failed(crowd, step) for crowd in fragile for step in steps), Counter())
    failed_calls = sum((_failed(crowd) for crowd in crowds), Counter()) - lost
    deviation = max(spread.deviation for spread in course.spreads.values())
    report.bounds += [
        equals(f"{way}: calls that failed or were wrong", dict(failed_calls) or 0, 0),
        equals(f"{way}: servers that did not stop or come back as they should", course.problems or 0, 0),
        at_most(
            f"{way}: slowest call",
            max(seconds for crowd in crowds for seconds in crowd.slowest_s.values()),
            MAX_CALL_S,
            " s",
        ),
        at_most(f"{way}: largest deviation from an even spread", 100 * deviation, 100 * MAX_DEVIATION, " %"),
    ]
    if "cut" in course.options.events:
        what = f"{way}: calls lost with the host that was cut off"
        num_callers = len(course.streams) + CALLS_AT_ONCE * (len(fragile) - len(course.streams))
        report.bounds.append(at_most(what, lost.total(), num_callers))
        report.facts |= {f"{what}, {told}": str(count) for told, count in lost.items()}
    if course.back_s:
        report.facts[f"{way}: calls come again"] = (
            f"at most {max(course.back_s):.1f} s after a server is ready"
        )


def _failed(crowd: Crowd, step: str = "") -> Counter[str]:
    """How calls failed, in `step` or in all."""
    return Counter(
        {
            f"{each}: {what}": count
            for (each, what), count in crowd.outcomes.items()
            if what != "right" and step in {"", each}
        }
    )


def _spread(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["", ""]
    return [", ".join(f"{100 * share:.1f}" for share in spread.shares), f"{spread.seconds:.1f}"]


async def run(hosts: Sequence[Host], network: Network, options: argparse.Namespace, report: Report) -> None:
    for host in hosts:
        await asyncio.to_thread(host.start)
    with progress_bar() as bars:
        bar = bars.add_task("", total=len(options.ways) * (1 + 2 * len(options.events)))
        for way in options.ways:

            def tell(step: str, way: str = way) -> None:
                bars.update(bar, description=f"{way}: {step}")
                bars.advance(bar)

            course = Course(hosts, network, options, tell)
            if way == BALANCER:
                target = "ipv4:" + ",".join(host.target for host in hosts)
                await course.run(target, some_are_plain=False)
            else:
                target = f"{network.addresses[GATEWAY]}:8500"
                log = hosts[0].models.parent / f"{way}.log"
                with gateway(way, network.enter(GATEWAY), target, log):
                    await course.run(target, some_are_plain=True)
            describe(way, course, report)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="of calling")
    parser.add_argument("--events", nargs="+", choices=EVENTS, default=list(EVENTS), help="in their order")
    parser.add_argument("--clients", type=positive, default=4, help="of two calls and a stream at one time")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of each caller after each call")
    parser.add_argument("--cut", type=float, default=15.0, help="seconds that a host is cut off")
    parser.add_argument("--stop", type=float, default=5.0, help="seconds that a host stands still")
    add_json_option(parser)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    missing = [why_missing(way) for way in options.ways if way != BALANCER]
    if problem := why_impossible() or ", ".join(filter(None, missing)):
        print(f"cluster: {problem}", file=sys.stderr)
        return 1
    enter_own_network("tests.load.cluster", arguments)
    report = Report("cluster")
    with tempfile.TemporaryDirectory(prefix="dragoman-cluster-") as name:
        models = Path(name) / "models"
        for model in ("spell", "count"):
            shutil.copytree(BUNDLES / model / "2", models / model / "2")
        network = Network((*SERVERS, GATEWAY), Path(name))
        hosts = [Host(models, network, server) for server in SERVERS]
        try:
            asyncio.run(run(hosts, network, options, report))
        finally:
            for host in hosts:
                host.close()
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
