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

A stream that is under way on the host that is cut off may be lost. nginx sends no call again that it has sent: where
its client repeats nothing, a call may be lost that is under way on that host or meets a server just as that stops. No
other call may fail. Before and after each event the servers have to get as many calls as each other. It needs root, and
`ip`, `unshare` and `nsenter`.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import add_json_option, argument_parser, positive
from tests.integration.serving import BUNDLES
from tests.load.cluster_course import EVENTS, MAX_DEVIATION, Course, Host, Spread
from tests.load.crowd import progress_bar
from tests.load.gateways import GATEWAYS, gateway, why_missing
from tests.load.network import Network, enter_own_network, why_impossible
from tests.load.report import Report, Table, at_most, equals

BALANCER = "client"
WAYS = (BALANCER, *GATEWAYS)
SERVERS = ("dragoman-a", "dragoman-b", "dragoman-c")
MAX_CALL_S = 30.0
COSTLY = {"restart": len(SERVERS), "cut": 1}
"""How many calls an event may cost a caller that may lose some."""
GATEWAY = "gateway"
TITLES = {BALANCER: "By our client's balancer", "nginx": "Through nginx", "envoy": "Through Envoy"}


def describe(way: str, course: Course, report: Report) -> None:
    """Add what came of one way of calling."""
    callers = course.callers
    rows = []
    for step in dict.fromkeys(step for each in callers for step, _ in each.outcomes):
        right = sum(each.outcomes[step, "right"] for each in callers)
        num_failed = sum(each.failed(step).total() for each in callers)
        slowest_s = max(each.slowest_s.get(step, 0.0) for each in callers)
        spread = course.spreads.get(step)
        rows.append([step, f"{right:,}", f"{num_failed:,}", f"{slowest_s:.2f}", *_spread(spread)])
    columns = ["meanwhile", "right", "failed or wrong", "slowest call in s", "calls of each server in %"]
    report.tables.append(Table(TITLES[way], [*columns, "even after s"], rows))
    failed = sum((each.failed() for each in callers), Counter())
    for event, num_times in COSTLY.items():
        fragile = [each for each in callers if each.may_lose(way, event)]
        if event in course.options.events and fragile:
            lost = sum((each.lost(event) for each in fragile), Counter())
            failed -= lost
            limit = num_times * sum(each.number for each in fragile)
            report.bounds.append(
                at_most(f"{way}: calls that may be lost, {EVENTS[event]}", lost.total(), limit)
            )
            report.facts |= {f"{way}: lost, {told}": str(count) for told, count in lost.items()}
    slowest_s = max(seconds for each in callers for seconds in each.slowest_s.values())
    deviation = max(spread.deviation for spread in course.spreads.values())
    report.bounds += [
        equals(f"{way}: other calls that failed or were wrong", dict(failed) or 0, 0),
        equals(f"{way}: servers that did not stop or come back as they should", course.problems or 0, 0),
        at_most(f"{way}: slowest call", slowest_s, MAX_CALL_S, " s"),
        at_most(f"{way}: largest deviation from an even spread", 100 * deviation, 100 * MAX_DEVIATION, " %"),
    ]
    if course.back_s:
        report.facts[f"{way}: calls come again"] = (
            f"at most {max(course.back_s):.1f} s after a server is ready"
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
