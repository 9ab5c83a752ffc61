"""The engine: iteration-level batching on lanes, behind an asyncio face.

A lane is a thread that plans, steps and delivers, for ever:

    scheduler.plan -> lane.execute -> deliver to the event loop, once a step for all rows

Callers get a `Ticket` for each sequence. The scheduler is shared and guarded by one condition, held only for
bookkeeping, never while a graph runs.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import structlog

from dragoman.common.cpu import usable_cores
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.cost import max_step_cost, step_cost
from dragoman.server.decoding.hypothesis import Finished
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.stopping import StopCondition
from dragoman.server.engine.lane import EngineObserver, Lane
from dragoman.server.engine.scheduler import Departure, Plan, QueueFullError, Scheduler
from dragoman.server.engine.scheduler import Sequence as Scheduled
from dragoman.server.engine.sequence import RunningSequence
from dragoman.server.engine.trial import check_answers
from dragoman.server.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    Overloaded,
    RequestError,
    ResourceUnavailable,
)
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.memory import MemoryBudget, engine_bytes

__all__ = ["Engine", "Occupancy", "Ticket", "lane_layout", "load_backend", "load_checked_backend"]

RETRY_DELAY_S = 1.0
"""What a refused caller is told to wait."""

_ROWS_A_RESERVED_ONE = 6
"""Beside so many rows a lane has one more, which a call with many leaves to others: with 32 a search of five beams."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How full the engine is at one moment."""

    slots_used: int
    slots_total: int
    num_running: int
    num_waiting: int


class Ticket:
    """One sequence's answer, in the making. Use it from the event loop that submitted it.

    Attributes:
        submitted_s: when it was handed in; all times are `time.monotonic()`.
        finished_s: when the event loop heard of its end, or None.
    """

    def __init__(self, sequence: RunningSequence, cancel: Callable[["Ticket"], None]) -> None:
        self.sequence = sequence
        self.loop = asyncio.get_running_loop()
        self.submitted_s = time.monotonic()
        self.finished_s: float | None = None
        self._cancel = cancel
        self._outcome: asyncio.Future[Finished] = self.loop.create_future()
        self._arrival = asyncio.Event()

    @property
    def admitted_s(self) -> float | None:
        """When it got a slot, or None."""
        return self.sequence.started_s

    @property
    def first_token_s(self) -> float | None:
        """When its first token was chosen, or None."""
        return self.sequence.first_token_s

    async def result(self) -> Finished:
        """The whole answer.

        Raises:
            DeadlineExceeded: its deadline passed first.
            Cancelled: `cancel` was called first.
            EngineError: a step failed.
        """
        return await asyncio.shield(self._outcome)

    def when_answered(self, tell: Callable[[Finished], None]) -> None:
        """Have `tell` called with the answer, if there ever is one."""

        def settled(outcome: "asyncio.Future[Finished]") -> None:
            if not outcome.cancelled() and outcome.exception() is None:
                tell(outcome.result())

        self._outcome.add_done_callback(settled)

    async def __aiter__(self) -> AsyncIterator[list[int]]:
        """New tokens as they come, several at once for a slow reader; raises what `result` raises."""
        assert self.sequence.stream, "submit with stream=True to iterate"
        num_read = 0
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            over = self._outcome.done()
            # The lane only ever appends to this list.
            if tokens := self.sequence.token_ids[num_read:]:
                num_read += len(tokens)
                yield tokens
            if over:
                self._outcome.result()
                return

    def cancel(self) -> None:
        """Free the sequence's slot before its lane's next step. Harmless when it is over."""
        if not self._outcome.done():
            self._cancel(self)

    def wake(self, outcome: Finished | RequestError | None) -> None:
        """Called on the event loop when there are new tokens or, with `outcome`, when the sequence is over."""
        if outcome is not None and not self._outcome.done():
            self.finished_s = time.monotonic()
            if isinstance(outcome, Finished):
                self._outcome.set_result(outcome)
            else:
                self._outcome.set_exception(outcome)
                self._outcome.exception()  # a caller that has left will not look: that is no warning
        self._arrival.set()


Wake = tuple[Ticket, Finished | RequestError | None]


class Engine:
    """A bundle being served.

    Attributes:
        num_threads: threads that compute.
        slots_per_lane: rows that one input may have at most.
        max_rows: rows that all inputs of a call may have at most: as many as can run and wait at a time.
        kernels: those its sessions run with, as `Backend` has them.
        prefix_cache: what its lanes share of prompts.
    """

    def __init__(
        self, backend: Backend, settings: EngineSettings, observer: EngineObserver | None = None
    ) -> None:
        num_lanes, num_lane_threads = lane_layout(settings)
        self.num_threads = num_lanes * num_lane_threads
        self.slots_per_lane = settings.slots_per_lane
        self.max_rows = num_lanes * settings.slots_per_lane + settings.max_waiting
        backend = backend.with_prefix_cache(settings.prefix_cache_bytes)
        self.prefix_cache = backend.prefix_cache
        self.kernels = backend.kernels
        num_reserved = _num_reserved(settings)
        lanes = [
            Lane(
                backend,
                settings.slots_per_lane + num_reserved,
                observer,
                multi_step_rows=settings.multi_step_rows,
            )
            for _ in range(num_lanes)
        ]
        dimensions = backend.bundle.manifest.dimensions
        self._vocabulary_size = dimensions.vocabulary_size
        # Prompts are read one by one, so nothing is gained by starting several at once.
        reads_together = backend.bundle.manifest.task == "translation"
        self._scheduler = Scheduler(
            num_lanes,
            settings.slots_per_lane,
            settings.max_waiting,
            settings.max_start_tokens,
            rows_before_spread=settings.rows_before_spread,
            max_start_interval=settings.max_start_interval if reads_together else 1,
            read_together=settings.read_together if lanes[0].rows.reads_ahead else 1,
            reserved_rows=num_reserved,
            max_step_cost=max_step_cost(dimensions.num_parameters, settings.slots_per_lane, num_lanes),
        )
        self._tickets: dict[Scheduled, Ticket] = {}
        self._work = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run_lane, args=(index, lane), name=f"lane-{index}", daemon=True)
            for index, lane in enumerate(lanes)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:  # the system has no thread left for this process
            self.close()
            raise ResourceUnavailable(f"engine.lanes = {num_lanes}: {error}; lower it") from error

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        settings: EngineSettings,
        observer: EngineObserver | None = None,
        budget: MemoryBudget | None = None,
    ) -> Self:
        """Load a bundle's graphs, run them at their limits, check its golden examples and start the lanes.

        Args:
            bundle: what is loaded.
            settings: how it runs.
            observer: told of every graph that ran.
            budget: what other engines of this process have reserved; None: there are none.

        Raises:
            BundleError: a graph cannot be loaded or run, or a golden example gets another answer.
            ProviderUnavailable: the provider asked for cannot be had.
            ResourceUnavailable: there is no memory, or no thread, for the lanes.
        """
        return cls(load_checked_backend(bundle, settings, budget), settings, observer)

    def submit(
        self,
        input_ids: Sequence[int],
        parameters: DecodingParameters,
        *,
        deadline_s: float | None = None,
        stop: StopCondition | None = None,
        stream: bool = False,
    ) -> Ticket:
        """Queue one sequence. Call from a running event loop.

        Args:
            input_ids: what `tokenizer.json` makes of the text, special tokens included.
            parameters: how to decode it.
            deadline_s: on `time.monotonic()`; the sequence is dropped when it passes.
            stop: may end the sequence early.
            stream: whether the ticket will be iterated.

        Raises:
            Overloaded: too many sequences wait already.
            EngineError: the engine is closed.
        """
        [ticket] = self.submit_all(
            [RunningSequence.create(input_ids, parameters, deadline_s=deadline_s, stop=stop, stream=stream)]
        )
        return ticket

    def submit_all(self, sequences: Sequence[RunningSequence]) -> list[Ticket]:
        """Queue the sequences of one call, all of them or none. Call from a running event loop.

        Raises:
            Overloaded: too many sequences wait already.
        """
        for sequence in sequences:
            has_stop = sequence.stop is not None
            sequence.cost = step_cost(sequence.parameters, self._vocabulary_size, has_stop=has_stop)
        tickets = [Ticket(sequence, self.cancel) for sequence in sequences]
        with self._work:
            if self._closing:
                raise EngineError("the engine is closed")
            try:
                self._scheduler.submit(*sequences)
            except QueueFullError:
                num_waiting = self._scheduler.num_waiting
                raise Overloaded(f"{num_waiting} inputs are waiting already", RETRY_DELAY_S) from None
            self._tickets |= zip(sequences, tickets, strict=True)
            self._wake_lane()
        return tickets

    def cancel(self, *tickets: Ticket) -> None:
        """Free the rows of those that are not over before their lane's next step."""
        with self._work:
            for ticket in tickets:
                if ticket.sequence in self._tickets and self._scheduler.cancel(ticket.sequence):
                    del self._tickets[ticket.sequence]
                    ticket.wake(Cancelled())

    def occupancy(self) -> Occupancy:
        """Slots and queue at this moment."""
        with self._work:
            plans = self._scheduler
            return Occupancy(plans.num_used_slots, plans.num_slots, plans.num_running, plans.num_waiting)

    def begin_close(self) -> None:
        """Have the lanes stop after the step that they compute. Returns at once."""
        with self._work:
            self._closing = True
            self._work.notify_all()

    def close(self, timeout_s: float | None = None) -> bool:
        """Stop the lanes; sequences that have not ended fail with `EngineError`.

        Waits for the lanes at most `timeout_s`. Returns whether they have ended; where one has not, it still
        uses the graphs.
        """
        self.begin_close()
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join(None if end_s is None else max(0.0, end_s - time.monotonic()))
        self._fail_all("the engine was closed")
        return not any(thread.is_alive() for thread in self._threads)

    def _fail_all(self, reason: str) -> None:
        with self._work:
            wakes = [(ticket, EngineError(reason)) for ticket in self._tickets.values()]
            self._tickets.clear()
        _wake_all(wakes)

    def _wake_lane(self) -> None:
        """Have an idle lane look for work, if there is some for it; it wakes the next one if there is more.

        Lanes that run look before each step anyway.
        """
        if self._scheduler.wants_idle_lane():
            self._work.notify()

    def _run_lane(self, index: int, lane: Lane) -> None:
        try:
            self._loop(index, lane)
        except BaseException:
            # The scheduler's state is in doubt, so no other lane may go on. The server ends with this thread.
            self.begin_close()
            self._fail_all("a lane died")
            raise

    def _loop(self, index: int, lane: Lane) -> None:
        plan = Plan()
        progressed: list[RunningSequence] = []
        while True:
            with self._work:
                lane.hand_over(plan, self._scheduler)
                wakes = self._settle(plan, progressed)
                if not wakes:  # or those who wait for an answer would wait for the next input
                    self._work.wait_for(lambda: self._closing or self._scheduler.has_work(index))
                if self._closing:
                    break
                plan = self._scheduler.plan(index, time.monotonic(), lane.num_steps)
                self._wake_lane()
            _wake_all(wakes)
            try:
                progressed = lane.execute(plan)
            except BaseException:  # noqa: BLE001 whatever it is, also a panic of native code: the lane goes on
                _log.exception("step_failed", lane=index, rows=plan.num_rows)
                lane.clear()
                with self._work:
                    failed = self._scheduler.evict(index)
                    failures = self._take_tickets((each, EngineError("a step failed")) for each in failed)
                _wake_all(failures)
                progressed = []
        _wake_all(wakes)

    def _settle(self, plan: Plan, progressed: Sequence[RunningSequence]) -> list[Wake]:
        """Free the rows of what ended; returns the tickets to wake once the lock is free, each with its outcome.

        A sequence has no ticket any more when the engine was given up during the step: by `close`, which does not
        wait for ever, or because another lane died.
        """
        ended: list[tuple[Scheduled, Finished | RequestError]] = [
            (dropped, Cancelled() if departure is Departure.CANCELLED else DeadlineExceeded())
            for dropped, departure in plan.dropped
        ]
        wakes: list[Wake] = []
        for sequence in progressed:
            if sequence.result is not None:
                self._scheduler.finish(sequence)
                ended.append((sequence, sequence.result))
            elif sequence.stream and sequence in self._tickets:
                wakes.append((self._tickets[sequence], None))
        return self._take_tickets(ended) + wakes

    def _take_tickets(self, ended: Iterable[tuple[Scheduled, Finished | RequestError]]) -> list[Wake]:
        return [
            (ticket, outcome)
            for sequence, outcome in ended
            if (ticket := self._tickets.pop(sequence, None)) is not None
        ]


def _num_reserved(settings: EngineSettings) -> int:
    """Rows of a lane beside its slots."""
    return settings.slots_per_lane // _ROWS_A_RESERVED_ONE


def lane_layout(settings: EngineSettings) -> tuple[int, int]:
    """Number of lanes and of threads in each, from the cores this process may use.

    One lane of one thread per core: lanes share no barrier, and a small model's products gain nothing from a
    second thread. An accelerator has one lane, whose thread computes nothing: two would take turns at it.
    """
    num_cores = usable_cores()
    on_device = settings.provider != "cpu"
    num_lanes = (1 if on_device else num_cores) if settings.lanes == "auto" else settings.lanes
    num_threads = 1 if on_device else max(1, num_cores // num_lanes)
    return num_lanes, num_threads if settings.threads_per_lane == "auto" else settings.threads_per_lane


def load_checked_backend(
    bundle: Bundle, settings: EngineSettings, budget: MemoryBudget | None = None
) -> Backend:
    """A bundle's graphs, which an engine of these settings can serve: see `Engine.load`."""
    backend = load_backend(bundle, settings)
    num_lanes, _ = lane_layout(settings)
    num_bytes = engine_bytes(
        backend,
        num_lanes=num_lanes,
        rows_per_lane=settings.slots_per_lane + _num_reserved(settings),
        prefix_cache_bytes=settings.prefix_cache_bytes,
    )
    what = f"{bundle.path}: engine.lanes = {num_lanes} of engine.slots_per_lane = {settings.slots_per_lane}"
    if backend.reuses_prefixes:
        what += f" with engine.prefix_cache_bytes = {settings.prefix_cache_bytes}"
    with (budget or MemoryBudget()).granted(num_bytes, what, "lower one of them"):
        check_answers(backend, num_rows=settings.slots_per_lane)
    return backend


def load_backend(bundle: Bundle, settings: EngineSettings) -> Backend:
    """A bundle's graphs with as many threads as one lane of an engine has.

    Raises:
        BundleError: a graph cannot be loaded.
        ProviderUnavailable: the provider or the kernels asked for cannot be had.
    """
    _, num_threads = lane_layout(settings)
    return Backend.load(bundle, provider=settings.provider, num_threads=num_threads, kernels=settings.kernels)


def _wake_all(wakes: Sequence[Wake]) -> None:
    """From a lane's thread: one call into each event loop, however many tickets it holds."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Wake]] = {}
    for wake in wakes:
        by_loop.setdefault(wake[0].loop, []).append(wake)
    for loop, group in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to be told
            loop.call_soon_threadsafe(_wake_group, group)


def _wake_group(group: Sequence[Wake]) -> None:
    for ticket, outcome in group:
        ticket.wake(outcome)
