"""Sends requests to one model, in a closed or an open loop, and measures the answers.

Closed loop: `concurrency` callers, each sending its next request when its last one was answered; the
server sets the pace, which shows its throughput. Open loop: requests come at `rate` a second whatever the
server does, as from independent users, which shows the latency they would see.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from dragoman.client.asynchronous import AsyncClient
from dragoman.client.channel import ChannelSettings
from dragoman.client.credentials import Credentials
from dragoman.client.errors import CallError
from dragoman.client.load.arrivals import poisson_arrivals
from dragoman.client.load.report import LoadReport, Outcome, Recorder
from dragoman.client.results import DecodingOptions, PriorityName, Task
from dragoman.common.errors import OperationError, UsageError

__all__ = ["LoadPlan", "Progress", "run_load"]

_PROGRESS_INTERVAL_S = 0.1

MAX_LAG_S = 3.0
"""A generator that is so late never catches up: what it would measure is itself."""


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """One load run.

    Attributes:
        target: The server.
        model: The model's name.
        version: Its version; empty is the highest.
        inputs: Texts to send, over and over, in an order shuffled by `seed`.
        concurrency: Callers of a closed loop; None for an open loop.
        rate: Requests a second of an open loop; None for a closed loop.
        warm_up_s: How long to send before measuring, in seconds.
        duration_s: How long to measure, in seconds.
        timeout_s: Deadline of each request; it also bounds what an overloaded open loop has in flight.
        priority: Of each request.
        stream: Whether translations are streamed, so that the time to the first token can be seen.
        options: Decoding options of every request.
        credentials: TLS and a token for the server; None: what the environment names.
        seed: Makes order and arrivals repeatable.
    """

    target: str
    model: str
    version: str = ""
    inputs: Sequence[str]
    concurrency: int | None = None
    rate: float | None = None
    warm_up_s: float = 2.0
    duration_s: float = 10.0
    timeout_s: float = 60.0
    priority: PriorityName = "normal"
    stream: bool = False
    options: DecodingOptions
    seed: int = 0
    credentials: Credentials | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no load.

        Raises:
            UsageError: naming the value.
        """
        if (self.concurrency is None) == (self.rate is None):
            raise UsageError("a load is either a closed loop (concurrency) or an open loop (rate)")
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(f"concurrency = {self.concurrency}: must be at least 1")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise UsageError(f"rate = {self.rate:g}: must be above 0")
        if not 0 < self.duration_s < float("inf"):
            raise UsageError(f"duration = {self.duration_s:g} s: must be above 0 and end")
        if not 0 <= self.warm_up_s < float("inf"):
            raise UsageError(f"warm-up = {self.warm_up_s:g} s: must be at least 0 and end")
        if not self.inputs:
            raise UsageError("there are no inputs to send")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is: seconds since its beginning, of how many, and requests measured so far."""

    elapsed_s: float
    total_s: float
    num_requests: int


async def run_load(plan: LoadPlan, on_progress: Callable[[Progress], None] | None = None) -> LoadReport:
    """Run `plan` and report.

    Every request that was sent is waited for: leaving out the slow ones at the end would flatter the server.

    Raises:
        CallError: the server cannot be reached or does not hold the model.
        OperationError: this generator cannot send at the rate of the open loop.
    """
    # Retries would hide the errors and blur the latencies that are to be measured.
    settings = ChannelSettings(max_attempts=1)
    async with AsyncClient(
        plan.target, timeout_s=plan.timeout_s, settings=settings, credentials=plan.credentials
    ) as client:
        model = await client.model(plan.model, plan.version)
        ask = _asker(client, plan, model.task)
        begin_s = time.monotonic()
        recorder = Recorder(begin_s + plan.warm_up_s, begin_s + plan.warm_up_s + plan.duration_s)
        watcher = asyncio.ensure_future(_watch(plan, begin_s, recorder, on_progress))
        try:
            cpu_s = time.process_time()
            send = _open_loop if plan.rate is not None else _closed_loop
            await send(plan, begin_s, ask, recorder)
            cpu_share = (time.process_time() - cpu_s) / (time.monotonic() - begin_s)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
    return recorder.report(generator_cpu_share=cpu_share)


_Ask = Callable[[str, float], Awaitable[Outcome]]


async def _closed_loop(plan: LoadPlan, begin_s: float, ask: _Ask, recorder: Recorder) -> None:
    end_s = begin_s + plan.warm_up_s + plan.duration_s
    texts = _endless(plan)

    async def caller() -> None:
        while (now_s := time.monotonic()) < end_s:
            recorder.add(await ask(next(texts), now_s))

    assert plan.concurrency is not None
    async with asyncio.TaskGroup() as callers:
        for _ in range(plan.concurrency):
            callers.create_task(caller())


async def _open_loop(plan: LoadPlan, begin_s: float, ask: _Ask, recorder: Recorder) -> None:
    length_s = plan.warm_up_s + plan.duration_s

    async def request(text: str, intended_s: float) -> None:
        recorder.add(await ask(text, intended_s))

    assert plan.rate is not None
    arrivals = itertools.takewhile(
        lambda arrival_s: arrival_s < length_s, poisson_arrivals(plan.rate, seed=plan.seed)
    )
    try:
        async with asyncio.TaskGroup() as requests:
            for num_sent, (text, arrival_s) in enumerate(zip(_endless(plan), arrivals, strict=False)):
                now_s = time.monotonic()
                if now_s - begin_s - arrival_s > MAX_LAG_S:
                    raise _fell_behind(plan, num_sent / (now_s - begin_s))
                # Even when late, let the requests that are under way have their turn.
                await asyncio.sleep(max(0.0, begin_s + arrival_s - now_s))
                requests.create_task(request(text, begin_s + arrival_s))
    except* OperationError as group:  # a task group wraps what ends it
        raise group.exceptions[0] from None


def _fell_behind(plan: LoadPlan, sent_per_s: float) -> OperationError:
    return OperationError(
        f"this load generator is the limit, not the server: of {plan.rate:,.10g} requests/s it sends "
        f"{sent_per_s:,.0f}, and is {MAX_LAG_S:g} s late; give a lower rate, or run several generators"
    )


def _endless(plan: LoadPlan) -> Iterator[str]:
    order = list(plan.inputs)
    random.Random(plan.seed).shuffle(order)  # noqa: S311  a load, no secret
    return itertools.cycle(order)


def _asker(client: AsyncClient, plan: LoadPlan, task: Task) -> _Ask:
    call = _generate if task is Task.GENERATION else _stream_translate if plan.stream else _translate

    async def ask(text: str, intended_s: float) -> Outcome:
        sent_s = time.monotonic()
        try:
            first_token_s, num_input_tokens, num_output_tokens = await call(client, plan, text)
        except CallError as error:
            finished_s = time.monotonic()
            return Outcome(intended_s, sent_s, None, finished_s, error.code.name, message=str(error))
        finished_s = time.monotonic()
        return Outcome(
            intended_s, sent_s, first_token_s, finished_s, "OK", num_input_tokens, num_output_tokens
        )

    return ask


_Answer = tuple[float | None, int, int]
"""When the first token came, and how many tokens went in and came out."""


async def _translate(client: AsyncClient, plan: LoadPlan, text: str) -> _Answer:
    [answer] = await client.translate(
        text, model=plan.model, version=plan.version, priority=plan.priority, **plan.options
    )
    return None, answer.num_input_tokens, answer.num_output_tokens


async def _stream_translate(client: AsyncClient, plan: LoadPlan, text: str) -> _Answer:
    first_s = None
    num_input_tokens = num_output_tokens = 0
    async for piece in client.stream_translate(
        text, model=plan.model, version=plan.version, priority=plan.priority, **plan.options
    ):
        first_s = first_s or time.monotonic()
        if piece.translation:
            num_input_tokens = piece.translation.num_input_tokens
            num_output_tokens = piece.translation.num_output_tokens
    return first_s, num_input_tokens, num_output_tokens


async def _generate(client: AsyncClient, plan: LoadPlan, text: str) -> _Answer:
    first_s = None
    generation = client.generate(
        text, model=plan.model, version=plan.version, priority=plan.priority, **plan.options
    )
    async for _ in generation:
        first_s = first_s or time.monotonic()
    return first_s, generation.summary.num_input_tokens, generation.summary.num_output_tokens


async def _watch(
    plan: LoadPlan, begin_s: float, recorder: Recorder, on_progress: Callable[[Progress], None] | None
) -> None:
    while on_progress:
        elapsed_s = time.monotonic() - begin_s
        on_progress(Progress(elapsed_s, plan.warm_up_s + plan.duration_s, recorder.num_requests))
        await asyncio.sleep(_PROGRESS_INTERVAL_S)
