"""A further front that asks for figures gets an answer, or an error within a bounded time."""

import asyncio
from collections.abc import Mapping

import msgspec
import pytest
import structlog

from dragoman.server.errors import EngineError, EngineUnavailable
from dragoman.server.fronts.processes.messages import AskStatistics, ShowStatistics
from dragoman.server.fronts.processes.statistics import AskedStatistics, answer_statistics
from dragoman.server.operations.statistics import ModelStatistics

PATIENCE_S = 20.0


def figures(num_runs: float) -> ShowStatistics:
    return ShowStatistics({"dates": ModelStatistics(num_runs=num_runs)})


def num_runs(statistics: Mapping[str, ModelStatistics]) -> float:
    return statistics["dates"].num_runs


def told(message: ShowStatistics) -> ShowStatistics:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ShowStatistics)


async def test_what_cannot_be_read_is_an_answer_too_and_the_next_question_is_asked_anew() -> None:
    def fail() -> Mapping[str, ModelStatistics]:
        raise KeyError("surprise")

    asked: list[AskStatistics] = []
    statistics = AskedStatistics(asked.append)
    reading = asyncio.ensure_future(statistics.read())
    await asyncio.sleep(0)
    with structlog.testing.capture_logs() as log:
        statistics.receive(told(await answer_statistics(fail)))
    with pytest.raises(EngineError, match="cannot read its statistics"):
        await asyncio.wait_for(reading, PATIENCE_S)
    assert [each["event"] for each in log] == ["statistics_failed"]
    reading = asyncio.ensure_future(statistics.read())
    await asyncio.sleep(0)
    assert len(asked) == 2
    read = {"dates": ModelStatistics(num_runs=7)}
    statistics.receive(told(await answer_statistics(lambda: read)))
    assert num_runs(await asyncio.wait_for(reading, PATIENCE_S)) == 7


async def test_a_server_process_that_does_not_answer_is_waited_for_a_bounded_time() -> None:
    asked: list[AskStatistics] = []
    statistics = AskedStatistics(asked.append, max_wait_s=0.01)
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="has not answered"):
            await asyncio.wait_for(statistics.read(), PATIENCE_S)
    assert len(asked) == 1, "its answer is still to come"
    statistics.receive(figures(1))
    answering = AskedStatistics(lambda _: asyncio.get_running_loop().call_soon(answering.receive, figures(2)))
    assert num_runs(await asyncio.wait_for(answering.read(), PATIENCE_S)) == 2


async def test_those_that_wait_share_an_answer_that_was_asked_for_after_they_came() -> None:
    asked: list[AskStatistics] = []
    statistics = AskedStatistics(asked.append)
    first = asyncio.ensure_future(statistics.read())
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(statistics.read()) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(asked) == 1
    statistics.receive(figures(1))
    assert num_runs(await asyncio.wait_for(first, PATIENCE_S)) == 1
    while len(asked) < 2:
        await asyncio.sleep(0)
    statistics.receive(figures(2))
    assert [num_runs(each) for each in await asyncio.gather(*others)] == [2, 2, 2]
    assert len(asked) == 2


async def test_a_caller_that_leaves_takes_no_answer_along() -> None:
    asked: list[AskStatistics] = []
    statistics = AskedStatistics(asked.append)
    leaving, staying = (asyncio.ensure_future(statistics.read()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    statistics.receive(figures(1))
    while len(asked) < 2:
        await asyncio.sleep(0)
    statistics.receive(figures(2))
    assert num_runs(await asyncio.wait_for(staying, PATIENCE_S)) == 2
