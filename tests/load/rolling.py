"""Changes under load: no call may fail.

    python -m tests.load.rolling
    python -m tests.load.rolling --rounds 10

Two servers stand behind our client's balancer (round robin over both addresses, retries as they come). Callers ask for
translations, streams of them and generated text without a pause, and compare each answer. Meanwhile, round after round,
each server loads a new version of both models, switches to it and unloads the old one. Then it gets another version, is
told to stop (SIGTERM), ends its calls, and starts again with it. At last both servers let a new version's share of the
calls grow from nothing to all of them (`shares.py`).
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import add_json_option, argument_parser, positive
from tests.integration.serving import BUNDLES
from tests.load.crowd import progress_bar
from tests.load.report import Report, Table, equals
from tests.load.scene import Scene
from tests.load.shares import PERCENTAGES, Shares, move_shares
from tests.load.steady_callers import ANSWERS

from dragoman.client import AsyncClient, CallError

SETTLE_S = 0.5


@dataclass
class Crowd:
    """Callers with our client.

    Attributes:
        step: what is being done to the servers.
        outcomes: calls, by what was being done when they ended, and how they ended.
        slowest_s: the longest that a call took, by what was being done.
        pause_s: of each caller, after each call.
    """

    client: AsyncClient
    step: str = ""
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest_s: dict[str, float] = field(default_factory=dict)
    pause_s: float = 0.0
    is_over: bool = False

    async def translate(self) -> None:
        """Unary calls."""

        async def call() -> bool:
            texts = list(ANSWERS)
            answered = await self.client.translate(texts, model="spell")
            return [each.text for each in answered] == list(ANSWERS.values())

        await self._again_and_again(call)

    async def stream(self) -> None:
        """Streams of several inputs."""

        async def call() -> bool:
            pieces = ["", ""]
            async for delta in self.client.stream_translate(["12", "40"], model="spell"):
                pieces[delta.index] += delta.text
            return pieces == [ANSWERS["12"], ANSWERS["40"]]

        await self._again_and_again(call)

    async def generate(self) -> None:
        """Streams of generated text."""
        expected = ""

        async def call() -> bool:
            nonlocal expected
            answered = "".join(
                [piece async for piece in self.client.generate("one two", model="count", max_tokens=12)]
            )
            expected = expected or answered
            return answered == expected

        await self._again_and_again(call)

    async def _again_and_again(self, call: Callable[[], Awaitable[bool]]) -> None:
        while not self.is_over:
            began_s = time.monotonic()
            try:
                outcome = "right" if await call() else "wrong"
            except CallError as error:
                outcome = f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - began_s
            self.outcomes[self.step, outcome] += 1
            self.slowest_s[self.step] = max(seconds, self.slowest_s.get(self.step, 0.0))
            await asyncio.sleep(self.pause_s)


def new_version(models: Path) -> str:
    """Put another version of each model into the folder, whole; returns its number."""
    number = 0
    for model in ("spell", "count"):
        number = 1 + max(int(each.name) for each in (models / model).iterdir())
        part = models / f".{model}"
        shutil.copytree(BUNDLES / model / "2", part)
        part.rename(models / model / str(number))
    return str(number)


async def roll(
    scenes: Sequence[Scene],
    crowd: Crowd,
    shares: Shares,
    options: argparse.Namespace,
    progress: Callable[[str], None],
) -> list[str]:
    """All changes; returns what went wrong with servers."""
    problems = []

    def begin(step: str) -> None:
        crowd.step = step
        progress(step)

    for _ in range(options.rounds):
        for place, scene in zip("AB", scenes, strict=True):
            begin(f"{place} loads new versions and unloads the old ones")
            version = new_version(scene.models)
            async with AsyncClient(scene.target) as client:
                for model in ("spell", "count"):
                    await client.load_model(model)
                    versions = [each.version for each in await client.models() if each.name == model]
                    if versions != [version]:
                        problems.append(f"server {place} serves {model} in {versions} in place of {version}")
            await asyncio.sleep(SETTLE_S)
            begin(f"drain and restart {place} with a new version")
            version = new_version(scene.models)
            code = await asyncio.to_thread(scene.stop)
            if code:
                problems.append(f"server {place} ended with exit code {code}")
            await asyncio.to_thread(scene.start)
            async with AsyncClient(scene.target) as client:
                served = (await client.model("spell")).version
            if served != version:
                problems.append(f"server {place} serves version {served} in place of {version}")
            await asyncio.sleep(SETTLE_S)
        [new] = {new_version(scene.models) for scene in scenes}
        async with shares.calling(options.callers):
            await move_shares(scenes, shares, version, new, options.window, begin)
    return problems


async def run(scenes: Sequence[Scene], options: argparse.Namespace, report: Report) -> None:
    for scene in scenes:
        await asyncio.to_thread(scene.start)
    target = "ipv4:" + ",".join(scene.target for scene in scenes)
    num_steps = (4 + len(PERCENTAGES) + 1) * options.rounds
    with progress_bar() as bars:
        bar = bars.add_task("", total=num_steps)
        async with AsyncClient(target) as client:
            crowd = Crowd(client, "before")
            calls = [crowd.translate, crowd.stream, crowd.generate]
            tasks = [asyncio.create_task(call()) for call in calls for _ in range(options.callers)]
            await asyncio.sleep(SETTLE_S)

            def tell(step: str) -> None:
                bars.update(bar, description=step)
                bars.advance(bar)

            shares = Shares(target)
            problems = await roll(scenes, crowd, shares, options, tell)
            crowd.is_over = True
            await asyncio.gather(*tasks)
    steps = list(dict.fromkeys(step for step, _ in crowd.outcomes))
    rows = [_row(step, crowd) for step in steps]
    columns = ["meanwhile", "right", "failed or wrong", "slowest call in s"]
    report.tables.append(Table("Calls", columns, rows))
    failed = {f"{step}: {what}": count for (step, what), count in crowd.outcomes.items() if what != "right"}
    report.facts["calls"] = f"{crowd.outcomes.total():,}, {options.rounds} rounds"
    report.bounds += [
        equals("calls that failed or were wrong", failed or 0, 0),
        equals("servers that did not stop or start as they should", problems or 0, 0),
    ]
    shares.describe(report)


def _row(step: str, crowd: Crowd) -> list[str]:
    total = sum(count for (each, _), count in crowd.outcomes.items() if each == step)
    right = crowd.outcomes[step, "right"]
    return [step, f"{right:,}", f"{total - right:,}", f"{crowd.slowest_s[step]:.2f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=5, help="in each, both servers are changed")
    parser.add_argument("--callers", type=positive, default=4, help="of each of three kinds")
    parser.add_argument("--window", type=float, default=2.0, help="seconds at each share of a canary")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the servers")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report = Report("rolling")
    with tempfile.TemporaryDirectory(prefix="dragoman-rolling-") as name:
        scenes = []
        for place in "AB":
            models = Path(name) / place
            for model in ("spell", "count"):
                shutil.copytree(BUNDLES / model / "2", models / model / "2")
            scenes.append(Scene(models, ("models.allow_changes=true", *options.set)))
        try:
            asyncio.run(run(scenes, options, report))
        finally:
            for scene in scenes:
                scene.close()
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())
