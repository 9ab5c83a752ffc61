"""Many calls one after another, several at a time, answers in the order of the questions, constant memory."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any, TypeVar

from dragoman.client.errors import OverloadedError

__all__ = ["map_in_order", "until_accepted"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_DEFAULT_RETRY_DELAY_S = 0.5


async def map_in_order(
    function: Callable[[_Item], Awaitable[_Result]], items: AsyncIterable[_Item], *, max_in_flight: int
) -> AsyncGenerator[_Result, None]:
    """Apply `function` to every item, at most `max_in_flight` at a time, and give the results in order.

    An item is taken only when there is room for it, and a result is given as soon as it and all before it
    are there, even while the next item is still awaited. When an item or a call fails, the results before
    it are given first, then the error is raised and everything still running is cancelled.
    """
    room = asyncio.Semaphore(max_in_flight)
    calls: asyncio.Queue[asyncio.Future[_Result] | None] = asyncio.Queue()
    running: set[asyncio.Future[_Result]] = set()

    def settle(call: asyncio.Future[_Result]) -> None:
        running.discard(call)
        if not call.cancelled():
            call.exception()  # after an earlier failure nobody awaits this one, and asyncio would complain

    async def start_all() -> None:
        await room.acquire()
        try:
            async for item in items:
                call = asyncio.ensure_future(function(item))
                running.add(call)
                call.add_done_callback(settle)
                calls.put_nowait(call)
                await room.acquire()
        finally:
            calls.put_nowait(None)

    starter = asyncio.ensure_future(start_all())
    try:
        while (call := await calls.get()) is not None:
            yield await call
            room.release()
        await starter
    finally:
        leftover: list[asyncio.Future[Any]] = [starter, *running]
        for task in leftover:
            task.cancel()
        await asyncio.gather(*leftover, return_exceptions=True)


async def until_accepted(call: Callable[[], Awaitable[_Result]], *, timeout_s: float) -> _Result:
    """Repeat a call that the server has no room for until it is accepted.

    The channel's own retries (`ChannelSettings.max_attempts`) are few, as an interactive caller wants;
    work that is in no hurry waits for as long as the server asks each time.

    Raises:
        OverloadedError: there was no room within `timeout_s`.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            return await call()
        except OverloadedError as error:
            delay_s = error.retry_delay_s or _DEFAULT_RETRY_DELAY_S
            if time.monotonic() + delay_s >= end_s:
                raise
        await asyncio.sleep(delay_s)
