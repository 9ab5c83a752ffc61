"""A new version gets a share of the calls that grows step by step, under load: who is answered by which version?

Calls without a sticky key are drawn anew: their shares must be those that are set. Calls with one stay with a version
while shares stay, whichever server they reach, and nobody goes back to the old version while the share grows.
"""

import asyncio
import contextlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio
from tests.load.report import Bound, Report, Table, at_most, equals
from tests.load.scene import Scene
from tests.load.steady_callers import ANSWERS, translation_stub

from dragoman.client import AsyncClient
from dragoman.server.fronts.grpc.sticky import STICKY_KEY
from dragoman.v1 import translation_pb2

__all__ = ["Shares", "move_shares"]

PERCENTAGES = (0, 10, 50, 100)
NUM_KEYS = 60
MIN_DRAWN = 100
"""Calls without a key, at each percentage."""
MAX_DEVIATIONS = 6.0
"""Of a share that is drawn at random: with `MIN_DRAWN` calls less than one run in a million is further away."""
PATIENCE_S = 60.0
LOOK_S = 0.02
_ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


@dataclass
class Shares:
    """Callers with and without keys, and which version answered them.

    Attributes:
        percent: that the canary gets now; None: shares are being changed.
        canary: the version that has the share.
        drawn: calls without a key, by the percentage and whether the canary answered.
        by_key: whether the canary answered, by the percentage and the key, of all rounds and servers.
        failures: calls that failed or were wrong.
    """

    target: str
    percent: int | None = None
    canary: str = ""
    drawn: Counter[tuple[int, bool]] = field(default_factory=Counter)
    by_key: dict[tuple[int, str], set[bool]] = field(default_factory=lambda: defaultdict(set))
    failures: Counter[str] = field(default_factory=Counter)
    is_over: bool = False

    @contextlib.asynccontextmanager
    async def calling(self, num_callers: int) -> AsyncIterator[None]:
        """Call meanwhile, so many callers with keys and as many without."""
        self.is_over = False
        keys = [f"caller-{number}" for number in range(NUM_KEYS)]
        parts = [keys[number::num_callers] for number in range(num_callers)]
        tasks = [asyncio.create_task(self._call(part)) for part in [*parts, *[[""]] * num_callers]]
        try:
            yield
        finally:
            self.is_over = True
            await asyncio.gather(*tasks)

    async def _call(self, keys: Sequence[str]) -> None:
        options = [("grpc.service_config", _ROUND_ROBIN), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.target, options) as channel:
            stub = translation_stub(channel)
            request = translation_pb2.TranslateRequest(model="spell", inputs=list(ANSWERS))
            while not self.is_over:
                for key in keys:
                    metadata = ((STICKY_KEY, key),) if key else ()
                    percent = self.percent
                    try:
                        answer = await stub.Translate(request, metadata=metadata, timeout=PATIENCE_S)
                    except grpc.aio.AioRpcError as error:
                        self.failures[f"{error.code().name}: {error.details()}"] += 1
                        continue
                    if [each.text for each in answer.translations] != list(ANSWERS.values()):
                        self.failures["wrong"] += 1
                    if percent is not None and percent == self.percent:
                        self._note(percent, key, is_canary=answer.version == self.canary)

    def _note(self, percent: int, key: str, *, is_canary: bool) -> None:
        if key:
            self.by_key[percent, key].add(is_canary)
        else:
            self.drawn[percent, is_canary] += 1

    def has_all(self, percent: int) -> bool:
        """Whether every key, and enough calls without one, have been answered at this percentage."""
        num_keys = sum(at == percent for at, _ in self.by_key)
        return num_keys == NUM_KEYS and self._drawn_at(percent)[0] >= MIN_DRAWN

    def describe(self, report: Report) -> None:
        """Add the table and the bounds."""
        rows = []
        for percent in PERCENTAGES:
            in_canary = sum(True in each for (at, _), each in self.by_key.items() if at == percent)
            calls, share = self._drawn_at(percent)
            rows.append([f"{percent} %", f"{calls:,}", f"{100 * share:.1f} %", f"{in_canary} of {NUM_KEYS}"])
        columns = [
            "share that is set",
            "calls without a key",
            "answered by the canary",
            "keys that the canary has",
        ]
        report.tables.append(Table("A canary's share", columns, rows))
        report.bounds += self._bounds()

    def _bounds(self) -> list[Bound]:
        held = self.by_key
        torn = sorted(key for (_, key), versions in held.items() if len(versions) > 1)
        went_back = sorted(
            key
            for (percent, key), versions in held.items()
            for more in PERCENTAGES
            if more > percent and True in versions and False in held.get((more, key), ())
        )
        deviations = [_deviations(percent, *self._drawn_at(percent)) for percent in PERCENTAGES]
        return [
            equals("calls that failed or were wrong while shares moved", dict(self.failures) or 0, 0),
            equals("sticky keys with two versions at one share", torn or 0, 0),
            equals("sticky keys that left the canary while its share grew", went_back or 0, 0),
            at_most(
                "shares of calls without a key, in standard deviations from the set ones",
                max(deviations),
                MAX_DEVIATIONS,
            ),
        ]

    def _drawn_at(self, percent: int) -> tuple[int, float]:
        """Calls without a key, and the canary's share of them."""
        calls = self.drawn[percent, True] + self.drawn[percent, False]
        return calls, self.drawn[percent, True] / calls if calls else math.nan


def _deviations(percent: int, num_calls: int, share: float) -> float:
    """How far a share is from what it must be; without chance, or without a call: infinitely far, or not at all."""
    wanted = percent / 100
    if percent in {0, 100} or not num_calls:
        return 0.0 if share == wanted else math.inf
    return abs(share - wanted) / math.sqrt(wanted * (1 - wanted) / num_calls)


async def move_shares(
    scenes: Sequence[Scene], shares: Shares, old: str, new: str, window_s: float, step: Callable[[str], None]
) -> None:
    """Give `new` a growing share on all servers, each percentage for `window_s` and more, until `old` can go.

    All servers serve `old` of `spell`, and have `new` in their models folders.
    """
    shares.canary = new
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(scene.target)) for scene in scenes]
        for client in clients:
            # Without it the new version, which is the highest, would have all calls at once.
            await client.set_alias("spell", "stable", old, traffic_percent=100)
            await client.load_model("spell", new)
        for percent in PERCENTAGES:
            step(f"the canary gets {percent} %")
            for client in clients:
                await client.set_alias("spell", "stable", old, traffic_percent=100 - percent)
                await client.set_alias("spell", "canary", new, traffic_percent=percent)
            shares.percent = percent
            await asyncio.sleep(window_s)
            async with asyncio.timeout(PATIENCE_S):
                while not shares.has_all(percent):
                    await asyncio.sleep(LOOK_S)
            shares.percent = None
        step("the old version goes")
        for client in clients:
            await client.delete_alias("spell", "stable")
            await client.unload_model("spell", old)
            await client.delete_alias("spell", "canary")
