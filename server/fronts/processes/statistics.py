"""Figures of all fronts that a caller asks a further front for: the server process reads them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeAlias

import structlog

from dragoman.server.errors import EngineError, EngineUnavailable
from dragoman.server.fronts.processes.messages import AskStatistics, ShowStatistics
from dragoman.server.operations.statistics import ModelStatistics

__all__ = ["MAX_WAIT_S", "AskedStatistics", "answer_statistics"]

MAX_WAIT_S = 10.0
"""Reading takes milliseconds. A server process that has not answered by then is stopped, or short of memory."""

_Answer: TypeAlias = "asyncio.Future[Mapping[str, ModelStatistics]]"

_log = structlog.get_logger(__name__)


class AskedStatistics:
    """Statistics of a further front. On one event loop; one question at a time, which all that wait share."""

    def __init__(self, send: Callable[[AskStatistics], object], max_wait_s: float = MAX_WAIT_S) -> None:
        """`send` hands a message to the server process."""
        self._send = send
        self._max_wait_s = max_wait_s
        self._answer: _Answer | None = None

    async def read(self) -> Mapping[str, ModelStatistics]:
        """The figures of each model, of the server as a whole.

        Raises:
            EngineError: the server process cannot read them.
            EngineUnavailable: it has not answered for `max_wait_s`.
        """
        if self._answer is not None:  # what is read already may be older than this question
            await self._wait_for(self._answer)
        if self._answer is None:  # else another one that has waited asks
            self._send(AskStatistics())
            self._answer = asyncio.get_running_loop().create_future()
        return (await self._wait_for(self._answer)).result()

    def receive(self, message: ShowStatistics) -> None:
        """Take the figures that the server process has read, or its failure, for all callers that wait."""
        answer, self._answer = self._answer, None
        assert answer is not None, "they were asked for"
        if message.models is None:
            answer.set_exception(EngineError("the server process cannot read its statistics"))
            answer.exception()  # all that asked may have left
        else:
            answer.set_result(message.models)

    async def _wait_for(self, answer: _Answer) -> _Answer:
        await asyncio.wait([answer], timeout=self._max_wait_s)
        if not answer.done():
            raise EngineUnavailable(f"the server process has not answered for {self._max_wait_s:g} s")
        return answer


async def answer_statistics(read: Callable[[], Mapping[str, ModelStatistics]]) -> ShowStatistics:
    """Returns the answer to a front that asks for statistics, whatever `read` raises in its thread."""
    try:
        return ShowStatistics(dict(await asyncio.to_thread(read)))
    except Exception:  # noqa: BLE001  a fault of ours: the front that waits for the answer must not wait for ever
        _log.exception("statistics_failed")
        return ShowStatistics(None)
