import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
import pytest

from dragoman.client import OverloadedError
from dragoman.client.pipeline import map_in_order, until_accepted


async def each(items: Iterable[int]) -> AsyncIterator[int]:
    for item in items:
        yield item


async def test_results_keep_the_order_whatever_finishes_first() -> None:
    gates = [asyncio.Event() for _ in range(4)]

    async def wait(index: int) -> int:
        await gates[index].wait()
        if index:
            gates[index - 1].set()  # the later call lets the earlier one go
        return index

    gates[3].set()
    assert [result async for result in map_in_order(wait, each(range(4)), max_in_flight=4)] == [0, 1, 2, 3]


async def test_no_more_run_than_there_is_room_for() -> None:
    running, most, taken = 0, 0, 0

    async def numbers() -> AsyncIterator[int]:
        nonlocal taken
        for taken in range(1, 101):
            yield taken

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    num_given = 0
    async for _ in map_in_order(call, numbers(), max_in_flight=3):
        num_given += 1
        assert taken - num_given <= 3
    assert num_given == 100
    assert most == 3


async def test_a_result_does_not_wait_for_the_next_item() -> None:
    more = asyncio.Event()

    async def slowly() -> AsyncIterator[int]:
        yield 1
        await more.wait()
        yield 2

    async def same(number: int) -> int:
        return number

    results = map_in_order(same, slowly(), max_in_flight=2)
    assert await asyncio.wait_for(anext(results), timeout=5) == 1
    more.set()
    assert [result async for result in results] == [2]


async def test_what_came_before_a_failure_is_given_first_and_the_rest_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def call(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        if number == 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
        return number

    results = map_in_order(call, each(range(4)), max_in_flight=4)
    assert [await anext(results), await anext(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        await anext(results)
    assert cancelled.is_set()


async def test_an_item_that_cannot_be_read_fails_after_the_results_before_it() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("line 2")

    async def same(number: int) -> int:
        await asyncio.sleep(0)
        return number

    results = map_in_order(same, broken(), max_in_flight=2)
    assert await anext(results) == 1
    with pytest.raises(ValueError, match="line 2"):
        await anext(results)


def no_room(retry_delay_s: float) -> OverloadedError:
    return OverloadedError(
        "full", code=grpc.StatusCode.RESOURCE_EXHAUSTED, target="host:1", retry_delay_s=retry_delay_s
    )


async def test_a_call_without_room_is_repeated_until_there_is_some() -> None:
    refusals = [no_room(0.001), no_room(0.001)]

    async def call() -> str:
        if refusals:
            raise refusals.pop()
        return "done"

    assert await until_accepted(call, timeout_s=5) == "done"


async def test_patience_ends_before_a_wait_that_would_be_too_long() -> None:
    async def call() -> str:
        raise no_room(60)

    with pytest.raises(OverloadedError):
        await asyncio.wait_for(until_accepted(call, timeout_s=1), timeout=0.5)
