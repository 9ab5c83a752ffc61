"""A sequence's answer, in the making: what a caller waits on, and what the client feeds with a lane's events."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.engine.api import Started, Timeline
from dragoman.server.errors import RequestError

__all__ = ["Ticket"]


class Ticket:
    """One sequence's answer, in the making. Use it from the event loop that submitted it.

    Attributes:
        id: of the sequence.
        submitted_s: when it was handed in; all times are `time.monotonic()`.
        admitted_s: when it got its rows, or None.
        first_token_s: when its first token was chosen, or None.
        num_first_tokens: that came together then.
        finished_s: when the event loop received its end, or None.
        timeline: when its lane computed what for it, where that was asked for.
    """

    __slots__ = (
        "_cancel",
        "_is_streamed",
        "_on_answer",
        "_outcome",
        "_unread",
        "_waiters",
        "admitted_s",
        "finished_s",
        "first_token_s",
        "id",
        "num_first_tokens",
        "submitted_s",
        "timeline",
    )

    def __init__(
        self, cancel: Callable[["Ticket"], object], id_: int, submitted_s: float, *, is_streamed: bool
    ) -> None:
        """`cancel` is the client's: it frees the rows of a ticket's sequence."""
        self.id = id_
        self.submitted_s = submitted_s
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None
        self.num_first_tokens = 1
        self.finished_s: float | None = None
        self.timeline: Timeline | None = None
        self._cancel = cancel
        self._is_streamed = is_streamed
        self._unread: list[int] = []
        self._outcome: Decoded | RequestError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._on_answer: Callable[[Decoded], None] | None = None

    async def result(self) -> Decoded:
        """The whole answer.

        Raises:
            DeadlineExceeded: its deadline passed first.
            Cancelled: `cancel` was called first.
            EngineError: a step failed.
            EngineUnavailable: its lane died, or the engine was closed.
        """
        while self._outcome is None:
            await self._change()
        if isinstance(self._outcome, Decoded):
            return self._outcome
        raise self._outcome.with_traceback(None)

    @property
    def is_answered(self) -> bool:
        """Whether the answer is there."""
        return isinstance(self._outcome, Decoded)

    @property
    def num_answered_tokens(self) -> int:
        """Tokens of the answer, of all its hypotheses; 0 without one."""
        if not isinstance(self._outcome, Decoded):
            return 0
        return sum(each.num_output_tokens for each in self._outcome.hypotheses)

    def when_answered(self, on_answer: Callable[[Decoded], None]) -> None:
        """Have `on_answer` called with the answer, if there ever is one."""
        self._on_answer = on_answer
        if isinstance(self._outcome, Decoded):
            on_answer(self._outcome)

    async def __aiter__(self) -> AsyncIterator[list[int]]:
        """New tokens as they come, several at once for a slow reader; raises what `result` raises."""
        assert self._is_streamed, "submit with is_streamed=True to iterate"
        while True:
            while not self._unread and self._outcome is None:
                await self._change()
            if not self._unread:
                await self.result()
                return
            tokens, self._unread = self._unread, []
            yield tokens

    def cancel(self) -> None:
        """Free the sequence's rows before its lane's next step. Harmless when it is over."""
        self._cancel(self)

    def start(self, event: Started) -> None:
        """Take the times of its start."""
        self.admitted_s, self.first_token_s = event.started_s, event.first_token_s
        self.num_first_tokens = event.num_first_tokens

    def extend(self, token_ids: list[int]) -> None:
        """Take new tokens."""
        self._unread += token_ids
        self._wake()

    def settle(self, outcome: Decoded | RequestError) -> None:
        """Take the end."""
        self.finished_s = time.monotonic()
        self._outcome = outcome
        self._wake()
        if self._on_answer is not None and isinstance(outcome, Decoded):
            self._on_answer(outcome)

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():  # its caller has left
                waiter.set_result(None)
        self._waiters.clear()
