"""Priorities over the wire: who goes first, and what is refused by name."""

import asyncio
from pathlib import Path

import pytest
from tests.integration.serving import Gate, eventually, one_version, serving, violations_of

from dragoman.client.asynchronous import AsyncClient
from dragoman.client.results import PRIORITIES, PriorityName
from dragoman.v1 import generation_pb2, translation_pb2


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def test_the_calls_of_a_higher_priority_go_first(tmp_path: Path, gate: Gate) -> None:
    settings = ("engine.slots_per_lane=1", "server.max_inputs=2", "engine.max_waiting=16")
    async with serving(one_version(tmp_path, "spell/1"), *settings) as served:
        ended: list[str] = []

        async def ask(name: str, priority: PriorityName) -> None:
            [answer] = await client.translate("1", model="spell", priority=priority)
            assert answer.text == "one"
            ended.append(name)

        async def num_accepted(number: int) -> None:
            await eventually(lambda: served.num_accepted("spell") == number)

        async with AsyncClient(f"127.0.0.1:{served.server.port}") as client, asyncio.TaskGroup() as calls:
            with gate.closed():
                calls.create_task(ask("running", "normal"))
                await gate.wait_for_lane()
                calls.create_task(ask("on the lane", "normal"))
                await num_accepted(2)
                for number, priority in enumerate(reversed(PRIORITIES), 3):
                    calls.create_task(ask(priority, priority))
                    await num_accepted(number)
        assert [name for name in ended if name in PRIORITIES] == list(PRIORITIES)


async def test_a_priority_that_there_is_not_is_refused_by_name(tmp_path: Path) -> None:
    what = "7 is no priority: it is one of PRIORITY_UNSPECIFIED, PRIORITY_HIGH, PRIORITY_NORMAL, PRIORITY_LOW"
    async with serving(one_version(tmp_path, "spell/1", "count/2")) as served:
        for call in (
            served.translation.Translate(translation_pb2.TranslateRequest(priority=7)),  # type: ignore[arg-type]
            served.translation.ScoreTranslations(
                translation_pb2.ScoreTranslationsRequest(priority=7)  # type: ignore[arg-type]
            ),
            served.generation.ScoreTexts(generation_pb2.ScoreTextsRequest(priority=7)),  # type: ignore[arg-type]
        ):
            assert await violations_of(call) == {"priority": what}
