"""Figures of all fronts that a caller asks a further front for: the server process reads them."""

import asyncio
from collections.abc import Callable, Mapping

from dragoman.server.fronts.processes.messages import AskStatistics, ShowStatistics
from dragoman.server.operations.statistics import ModelStatistics

__all__ = ["AskedStatistics"]


class AskedStatistics:
    """Statistics of a further front. On one event loop; one question at a time."""

    def __init__(self, send: Callable[[AskStatistics], object]) -> None:
        """`send` hands a message to the server process."""
        self._send = send
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Mapping[str, ModelStatistics]] | None = None

    async def read(self) -> Mapping[str, ModelStatistics]:
        """The figures of each model, of the server as a whole."""
        async with self._turn:
            if self._answer is None:  # else the caller before has left, and its answer is to come
                self._answer = asyncio.get_running_loop().create_future()
                self._send(AskStatistics())
            return await asyncio.shield(self._answer)

    def hear(self, message: ShowStatistics) -> None:
        """The server process has read them."""
        answer, self._answer = self._answer, None
        assert answer is not None, "they were asked for"
        answer.set_result(message.models)
