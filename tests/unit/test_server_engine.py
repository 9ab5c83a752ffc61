"""Tickets, lanes and what happens when something goes wrong, on a real bundle and without sockets."""

import asyncio
import gc
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.threaded_engine import ThreadedEngine

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.candidates import Predictions
from dragoman.server.decoding.hypothesis import FinishReason
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.layout import lane_layout
from dragoman.server.engine.offline import decode_offline
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.engine.ticket import Ticket
from dragoman.server.engine.worker import LaneWorker
from dragoman.server.errors import Cancelled, DeadlineExceeded, EngineError, EngineUnavailable, Overloaded
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.encoding import ModelInput
from dragoman.server.execution.rows import Rows

FIXTURES = Path(__file__).parents[1] / "fixtures"
BUNDLE = Bundle.read(FIXTURES / "bundles" / "spell" / "1")
TOKENIZER = BUNDLE.tokenizer
GREEDY = DecodingParameters(max_tokens=81)
LONG = DecodingParameters(max_tokens=81, min_tokens=80)


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


class Gate:
    """Holds the lanes before each step, one at a time, until told how many more steps may run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = threading.Semaphore(0)
        self.rows: list[int] = []
        monkeypatch.setattr(Rows, "has_room_for_steps", lambda *_: False)
        decode = Rows.decode

        def gated(rows: Rows, num_rows: int, num_best: int = 1, *, needs_all: bool = True) -> Predictions:
            self.steps.acquire()
            self.rows.append(num_rows)
            return decode(rows, num_rows, num_best, needs_all=needs_all)

        monkeypatch.setattr(Rows, "decode", gated)

    def let(self, num_steps: int) -> None:
        self.steps.release(num_steps)


def load(**settings: Any) -> ThreadedEngine:
    return ThreadedEngine.of(BUNDLE, **settings)


@pytest.fixture
async def engine() -> AsyncIterator[ThreadedEngine]:
    engine = load(lanes=2, slots_per_lane=4)
    yield engine
    engine.close()


async def test_many_requests_over_two_lanes_answer_as_alone(engine: ThreadedEngine) -> None:
    inputs = [ids(str(i * 7919 % 100_003)) for i in range(60)]
    tickets = [engine.submit(source, GREEDY) for source in inputs]
    together = await asyncio.gather(*(ticket.result() for ticket in tickets))
    backend = Backend.load(BUNDLE, provider="cpu", num_threads=1)
    assert together == decode_offline(backend, [(source, GREEDY) for source in inputs], num_slots=1)
    assert engine.occupancy().num_running == engine.occupancy().num_waiting == 0


async def test_searches_that_are_encoded_before_they_start_answer_as_alone(
    engine: ThreadedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_encoded, num_started = [], []
    start = Rows.start

    def counted(
        rows: Rows, places: Sequence[int], sources: Sequence[ModelInput], ahead: Sequence[ModelInput] = ()
    ) -> int:
        num_encoded.append(start(rows, places, sources, ahead))
        num_started.append(len(sources))
        return num_encoded[-1]

    monkeypatch.setattr(Rows, "start", counted)
    search = DecodingParameters(max_tokens=81, beam_size=2, num_hypotheses=2)
    inputs = [(ids(str(i * 7919 % 100_003)), GREEDY if i % 10 == 9 else search) for i in range(60)]
    tickets = [engine.submit(source, parameters) for source, parameters in inputs]
    together = await asyncio.gather(*(ticket.result() for ticket in tickets))
    assert sum(num_started) == len(inputs)
    assert sum(num_encoded) == len(inputs)
    assert max(num_encoded) > 2, "more than there are rows for"
    assert 0 in num_encoded
    monkeypatch.undo()
    backend = Backend.load(BUNDLE, provider="cpu", num_threads=1)
    alone = [decode_offline(backend, [each], num_slots=2)[0] for each in inputs]
    assert together == alone


async def test_streamed_tokens_are_the_answer(engine: ThreadedEngine) -> None:
    ticket = engine.submit(ids("90210"), GREEDY, is_streamed=True)
    streamed = [token async for chunk in ticket for token in chunk]
    finished = (await ticket.result()).best
    assert tuple(streamed) == finished.token_ids
    assert TOKENIZER.decode(streamed) == "nine zero two one zero"
    assert finished.finish_reason is FinishReason.END_OF_SEQUENCE
    assert finished.num_output_tokens == len(streamed) + 1
    assert ticket.admitted_s is not None
    assert ticket.first_token_s is not None
    assert ticket.finished_s is not None
    assert ticket.submitted_s <= ticket.admitted_s <= ticket.first_token_s <= ticket.finished_s


async def test_maximum_and_minimum_lengths(engine: ThreadedEngine) -> None:
    short = (await engine.submit(ids("777"), DecodingParameters(max_tokens=3)).result()).best
    assert (TOKENIZER.decode(list(short.token_ids)), short.finish_reason) == ("sev", FinishReason.LENGTH)
    long = (await engine.submit(ids("7"), DecodingParameters(max_tokens=40, min_tokens=30)).result()).best
    assert len(long.token_ids) >= 30


async def test_a_stop_string_ends_the_sequence(engine: ThreadedEngine) -> None:
    finished = (await engine.submit(ids("12"), DecodingParameters(max_tokens=81, stop=(" ",))).result()).best
    assert (TOKENIZER.decode(list(finished.token_ids)), finished.finish_reason) == (
        "one ",
        FinishReason.STOP_STRING,
    )


async def test_a_cancelled_ticket_frees_its_slot_within_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine = load(slots_per_lane=2)
    try:
        doomed, neighbour = (engine.submit(ids(text), LONG) for text in ("12345", "67890"))
        waiting = engine.submit(ids("5"), GREEDY)
        gate.let(5)
        while len(gate.rows) < 5:
            await asyncio.sleep(0)
        doomed.cancel()
        gate.let(2)  # no more: the first one may have been planned already
        async with asyncio.timeout(20):  # or the slot is not free two steps after the cancellation
            while waiting.admitted_s is None:
                await asyncio.sleep(0)
        gate.let(1000)
        with pytest.raises(Cancelled):
            await doomed.result()
        alone = decode_offline(
            Backend.load(BUNDLE, provider="cpu", num_threads=1), [(ids("67890"), LONG)], num_slots=1
        )
        assert await neighbour.result() == alone[0]
        assert TOKENIZER.decode(list((await waiting.result()).best.token_ids)) == "five"
    finally:
        gate.let(100_000)
        engine.close()


async def test_a_waiting_ticket_is_cancelled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine = load(slots_per_lane=1)
    try:
        running, *others = (engine.submit(ids("12345"), GREEDY) for _ in range(4))
        *_, waiting = others  # of which the lane knows nothing yet
        waiting.cancel()
        with pytest.raises(Cancelled):
            await waiting.result()
        waiting.cancel()  # harmless
        gate.let(1000)
        assert (await running.result()).best.token_ids
    finally:
        gate.let(100_000)
        engine.close()


async def test_a_deadline_ends_running_and_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine = load(slots_per_lane=1)
    try:
        deadline = time.monotonic() + 0.05
        running, waiting = (engine.submit(ids("12345"), LONG, deadline_s=deadline) for _ in range(2))
        while time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        gate.let(2)
        for ticket in (running, waiting):
            with pytest.raises(DeadlineExceeded):
                await ticket.result()
        assert waiting.admitted_s is None
        assert engine.occupancy().slots_used == 0
    finally:
        gate.let(100_000)
        engine.close()


async def test_a_full_queue_refuses_and_says_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine = load(slots_per_lane=1, max_waiting=1)
    try:
        accepted: list[Ticket] = []
        with pytest.raises(Overloaded) as refused:
            accepted.extend(engine.submit(ids("1"), GREEDY) for _ in range(9))
        assert len(accepted) == 2
        assert refused.value.retry_delay_s > 0
        gate.let(1000)
        for ticket in accepted:
            await ticket.result()
    finally:
        gate.let(100_000)
        engine.close()


async def test_a_failed_step_fails_its_rows_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(slots_per_lane=4)
    decode = Rows.decode
    failures = iter([True])

    def failing(rows: Rows, num_rows: int, num_best: int = 1, *, needs_all: bool = True) -> Predictions:
        if next(failures, False):
            raise RuntimeError("secret internals")
        return decode(rows, num_rows, num_best, needs_all=needs_all)

    try:
        monkeypatch.setattr(Rows, "decode", failing)
        monkeypatch.setattr(Rows, "has_room_for_steps", lambda *_: False)
        with pytest.raises(EngineError):
            await engine.submit(ids("12"), GREEDY).result()
        after = await engine.submit(ids("12"), GREEDY).result()
        assert TOKENIZER.decode(list(after.best.token_ids)) == "one two"
    finally:
        engine.close()


async def test_close_settles_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine = load(slots_per_lane=1)
    tickets = [engine.submit(ids("12345"), LONG) for _ in range(3)]
    gate.let(3)
    while len(gate.rows) < 3:
        await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    for ticket in tickets:
        with pytest.raises(EngineUnavailable, match="the engine was closed"):
            await ticket.result()
    gate.let(100_000)
    assert await closing
    for client in (engine.client, engine.lanes.connect()):
        with pytest.raises(EngineUnavailable, match="the engine was closed"):
            client.submit(ids("1"), GREEDY)


def test_several_event_loops_share_the_lanes() -> None:
    """Each has a client of its own; one that ends without a word takes no row along."""
    lanes = LaneThreads.of(
        Backend.load(BUNDLE, provider="cpu", num_threads=1), EngineSettings(lanes=2, slots_per_lane=2)
    )

    async def ask(texts: list[str]) -> list[str]:
        client = lanes.connect()
        tickets = client.submit_all([(ids(text), GREEDY) for text in texts])
        answers = [await ticket.result() for ticket in tickets]
        return [TOKENIZER.decode(list(answer.best.token_ids)) for answer in answers]

    async def leave() -> None:
        lanes.connect().submit_all([(ids("90210"), LONG)] * 4)

    try:
        asyncio.run(leave())
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda digit: asyncio.run(ask([digit] * 8)), "1256"))
        assert found == [[word] * 8 for word in ("one", "two", "five", "six")]
    finally:
        assert lanes.close()


async def test_a_lane_that_dies_takes_its_sequences_along_and_the_last_one_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", dead.append)
    gate = Gate(monkeypatch)
    engine = load(lanes=2, slots_per_lane=1)
    try:
        tickets = [engine.submit(ids("12345"), LONG) for _ in range(2)]
        async with asyncio.timeout(20):
            while not all(ticket.admitted_s for ticket in tickets):
                gate.let(1)
                await asyncio.sleep(0.001)
        with monkeypatch.context() as patched:

            def fail(*_: object) -> None:
                patched.undo()
                raise MemoryError

            patched.setattr(LaneWorker, "_align", fail)
            gate.let(1)
            outcomes = [asyncio.ensure_future(ticket.result()) for ticket in tickets]
            [lost], _ = await asyncio.wait(outcomes, return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(lost.exception(), EngineUnavailable)
        gate.let(1000)
        assert len([each for each in outcomes if each is not lost and (await each).best.token_ids]) == 1
        assert (await engine.submit(ids("1"), GREEDY).result()).best.token_ids
        monkeypatch.setattr(LaneWorker, "_align", fail)
        with pytest.raises(EngineUnavailable, match="the engine's lanes have died"):
            await engine.submit(ids("1"), GREEDY).result()
        for client in (engine.client, engine.lanes.connect()):
            with pytest.raises(EngineUnavailable, match="the engine's lanes have died"):
                client.submit(ids("1"), GREEDY)
    finally:
        gate.let(100_000)
        engine.close()
    assert [each.exc_type for each in dead] == [MemoryError, MemoryError]


def test_lanes_and_threads_fill_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragoman.server.engine.layout.usable_cores", lambda: 6)
    assert lane_layout(EngineSettings()) == (6, 1)
    assert lane_layout(EngineSettings(lanes=2)) == (2, 3)
    assert lane_layout(EngineSettings(lanes=4, threads_per_lane=2)) == (4, 2)
    assert lane_layout(EngineSettings(provider="cuda")) == (1, 1)
    assert lane_layout(EngineSettings(provider="cuda", lanes=2)) == (2, 1)


@pytest.mark.parametrize("bundle", ["bundles/spell/1", "bundles/count/1", "extending/count/3"])
def test_the_memory_goes_with_its_rows(bundle: str) -> None:
    """Gigabytes, which must not wait for the collector of cycles."""
    backend = Backend.load(Bundle.read(FIXTURES / bundle), provider="cpu", num_threads=1)
    gc.disable()
    try:
        rows = backend.rows(2)
        rows.start([0], [ModelInput([4, 5])])
        rows.decode(1)
        memory = weakref.ref(rows.memory)
        del rows
        assert memory() is None
    finally:
        gc.enable()


def test_what_has_no_room_in_a_row_is_not_copied() -> None:
    memory = Backend.load(BUNDLE, provider="cpu", num_threads=1).rows(2).memory
    room = BUNDLE.manifest.limits.max_source_tokens
    names = [name for name in BUNDLE.manifest.graphs["decode"].inputs if re.fullmatch(r"cross_\w+_\d+", name)]
    heads, size = BUNDLE.manifest.dimensions.num_kv_heads, BUNDLE.manifest.dimensions.head_size

    def given(num_tokens: int, dtype: type = np.float32) -> dict[str, Any]:
        return {name: np.zeros((1, heads, num_tokens, size), dtype) for name in names}

    memory.store([1], [room], given(room), [0])
    for num_tokens, computed, place in (
        (room + 1, given(room + 1), 0),
        (3, given(2), 0),
        (2, given(2, np.float16), 0),
        (2, given(2), 1),
    ):
        with pytest.raises(ValueError, match="a row has room for"):
            memory.store([1], [num_tokens], computed, [place])
