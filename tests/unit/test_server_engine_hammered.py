"""Two fronts, two lanes and a slow transport; links and processes end at random: nothing is lost, nothing drifts.

Clients, dispatchers, workers and schedulers are the real ones. Lanes compute nothing: a sequence's answer is made of
its input. What goes between them is bytes, in queues whose ends advance at random.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from dragoman.server.config import EngineSettings
from dragoman.server.decoding.hypothesis import Decoded, FinishReason, Hypothesis
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine import client as client_module
from dragoman.server.engine import ticket as ticket_module
from dragoman.server.engine import worker as worker_module
from dragoman.server.engine.api import Command, EngineFacts, Leave, Report
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.lane_loop import LaneLoop, ModelFront
from dragoman.server.engine.lane_room import LaneRoom
from dragoman.server.engine.scheduler import Plan, Scheduler
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.engine.ticket import Ticket
from dragoman.server.engine.worker import LaneWorker
from dragoman.server.errors import Cancelled, DeadlineExceeded, EngineError, EngineUnavailable, Overloaded

NUM_LANES, NUM_SLOTS, NUM_RESERVED, MAX_COST = 2, 8, 2, 300
FACTS = EngineFacts("cpu", "none", NUM_LANES, 1, NUM_SLOTS, NUM_RESERVED, MAX_COST, 1000)
SETTINGS = EngineSettings(max_waiting=64)
NUM_TURNS = 600
MODEL = "spell/1"

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


class Clock:
    """Time that passes when the test says so."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class Paused(Exception):
    """A worker has taken its turn."""


class Wire:
    """What is under way between a front and a lane. None: the end of it."""

    def __init__(self) -> None:
        self.commands: deque[bytes | None] = deque()
        self.reports: deque[bytes | None] = deque()

    def cut(self, rng: random.Random) -> None:
        """A link ends; what the lane has not sent yet is lost with it."""
        if None in self.reports:
            return
        while self.reports and rng.random() < 0.3:
            self.reports.pop()
        self.end()

    def end(self) -> None:
        """Neither side sends any more."""
        for queue in (self.reports, self.commands):
            if None not in queue:
                queue.append(None)


class Alignments:
    """Answers that come a few turns later."""

    def __init__(self) -> None:
        self.waiting: dict[LaneSequence, int] = {}

    def __len__(self) -> int:
        return len(self.waiting)

    def run(self) -> list[tuple[LaneSequence, BaseException | None]]:
        ended: list[tuple[LaneSequence, BaseException | None]] = []
        for sequence in list(self.waiting):
            self.waiting[sequence] -= 1
            if not self.waiting[sequence]:
                del self.waiting[sequence]
                complete(sequence)
                ended.append((sequence, None))
        return ended

    def drop(self, sequence: LaneSequence) -> None:
        del self.waiting[sequence]

    def drop_expired(self, now_s: float) -> list[LaneSequence]:
        late = [each for each in self.waiting if each.deadline_s is not None and now_s >= each.deadline_s]
        for sequence in late:
            self.drop(sequence)
        return late


class Lane:
    """Rows that hold nothing but the sequences themselves."""

    vocabulary_size, num_steps_taken, prefix_cache, observe = 1000, 1, None, None

    def __init__(self, rng: random.Random, clock: Clock) -> None:
        self.alignments = Alignments()
        self.rows: list[LaneSequence] = []
        self.fails = 0.0
        self._rng, self._clock = rng, clock

    def clear(self) -> None:
        self.rows.clear()

    def execute(self, plan: Plan) -> list[LaneSequence]:
        for move in plan.moves:
            assert self.rows[move.source] is move.sequence
            self.rows[move.target] = self.rows[move.source]
        for sequence, rows in plan.starts:
            assert isinstance(sequence, LaneSequence)
            assert not sequence.cancelled
            sequence.started_s = self._clock.now_s
            for row in rows:
                assert row <= len(self.rows)
                self.rows[row : row + 1] = [sequence]
        del self.rows[plan.num_rows :]
        assert len(self.rows) == plan.num_rows <= NUM_SLOTS + NUM_RESERVED
        for sequence, num_rows in Counter(self.rows).items():
            assert num_rows == sequence.num_rows
            assert not sequence.has_ended
        if self._rng.random() < self.fails / 2:
            raise RuntimeError("before anything was chosen")
        for sequence in dict.fromkeys(self.rows):
            self._advance(sequence)
        if self._rng.random() < self.fails / 2:
            raise RuntimeError("after everything was chosen")
        for sequence, _ in plan.starts:
            assert isinstance(sequence, LaneSequence)
            sequence.first_token_s = self._clock.now_s
        return list(dict.fromkeys(self.rows))

    def _advance(self, sequence: LaneSequence) -> None:
        whole = answer(sequence.input_ids, sequence.parameters)
        if sequence.parameters.beam_size == 1:
            sequence.token_ids.append(whole.token_ids[len(sequence.token_ids)])
            if len(sequence.token_ids) < len(whole.token_ids):
                return
        elif self._rng.random() < 0.8:
            return
        sequence.has_ended = True
        if sequence.parameters.align:
            self.alignments.waiting[sequence] = self._rng.randint(1, 4)
        else:
            complete(sequence)


def answer(input_ids: Sequence[int], parameters: DecodingParameters) -> Hypothesis:
    """The one right answer to an input."""
    token_ids = tuple(
        hash((input_ids[0], place, parameters.seed)) % 1000 for place in range(parameters.max_tokens)
    )
    return Hypothesis(token_ids, FinishReason.LENGTH, 0.0, len(token_ids), 0.0)


def complete(sequence: LaneSequence) -> None:
    """Give a sequence its answer, as a search does it too."""
    whole = answer(sequence.input_ids, sequence.parameters)
    sequence.token_ids[:] = whole.token_ids
    sequence.complete([whole])


class LaneProcess:
    """A worker with what comes to it; a `LanePort`."""

    def __init__(self, world: "World") -> None:
        self._rng = world.rng
        self.lane = Lane(world.rng, world.clock)
        self.scheduler = Scheduler(
            NUM_SLOTS,
            reserved_rows=NUM_RESERVED,
            max_step_cost=MAX_COST,
            max_start_tokens=100,
            max_start_interval=world.rng.choice((1, 4)),
            encode_together=world.rng.choice((1, 8)),
        )
        self.worker: LaneWorker[ModelFront[int]] = LaneWorker(
            self.lane,  # type: ignore[arg-type]
            self.scheduler,
            self.send,
            max_failed_steps=10**9,
        )
        self.loop = LaneLoop(self, {MODEL: self.worker})
        self.wires: dict[int, Wire] = {}  # by front
        self.joining: list[tuple[int, Wire]] = []
        self._is_asked = True

    def turn(self) -> None:
        self._is_asked = False
        with pytest.raises(Paused):
            self.loop.run()

    def receive(self, *, wait: bool) -> list[tuple[ModelFront[int], Command]]:
        if self._is_asked:
            raise Paused
        self._is_asked = True
        received: list[tuple[ModelFront[int], Command]] = []
        for front, wire in self.joining:
            if front in self.wires:  # as a port has it: the old link ends before the new one begins
                received.append(((MODEL, front), Leave()))
            self.wires[front] = wire
        self.joining.clear()
        for front, wire in list(self.wires.items()):
            while wire.commands and self._rng.random() < 0.8:
                content = wire.commands.popleft()
                received.append(((MODEL, front), Leave() if content is None else decode_command(content)))
                if content is None:
                    del self.wires[front]
                    break
        if wait and not received:
            raise Paused
        return received

    def send(self, front: ModelFront[int], report: Report) -> None:
        if (wire := self.wires.get(front[1])) is not None and None not in wire.reports:
            wire.reports.append(encode(report))


class Link:
    """A front's end of a wire."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def send(self, command: Command) -> None:
        if None not in self.wire.commands:
            self.wire.commands.append(encode(command))


class Asked:
    """A sequence as its caller sees it."""

    def __init__(self, ticket: Ticket, input_ids: Sequence[int], parameters: DecodingParameters) -> None:
        self.ticket, self.input_ids, self.parameters = ticket, input_ids, parameters
        self.deadline_s: float | None = None
        self.is_cancelled = self.is_streamed = False
        self.streamed: list[int] = []
        self.outcomes: list[Any] = []

    async def follow(self) -> None:
        if self.is_streamed:
            try:
                async for token_ids in self.ticket:
                    self.streamed += token_ids
            except (Cancelled, DeadlineExceeded, EngineError, EngineUnavailable):
                pass
        try:
            self.outcomes.append(await self.ticket.result())
        except (Cancelled, DeadlineExceeded, EngineError, EngineUnavailable) as error:
            self.outcomes.append(error)


class Front:
    def __init__(self, number: int) -> None:
        self.number = number
        self.client = EngineClient(FACTS, SETTINGS)
        self.wires: dict[int, Wire] = {}  # by lane
        self.asked: list[Asked] = []


class World:
    def __init__(self, seed: int, clock: Clock) -> None:
        self.rng, self.clock = random.Random(seed), clock
        self.lanes = {index: LaneProcess(self) for index in range(NUM_LANES)}
        self.fronts: list[Front] = []
        self.gone: list[Front] = []
        self.num_fronts = self.num_fresh = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.may_fail = False
        for _ in range(2):
            self.add_front()

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way or in a lane."""
        wires = [wire for front in self.fronts for wire in front.wires.values()]
        return any(wire.commands or wire.reports for wire in wires) or any(
            process.scheduler.has_work for process in self.lanes.values()
        )

    def add_front(self) -> None:
        front = Front(self.num_fronts)
        self.num_fronts += 1
        self.fronts.append(front)
        for lane in self.lanes:
            self.connect(front, lane)

    def connect(self, front: Front, lane: int) -> None:
        wire = front.wires[lane] = Wire()
        self.lanes[lane].joining.append((front.number, wire))
        front.client.add_lane(lane, Link(wire))

    def act(self) -> None:
        """Something happens."""
        rng, front = self.rng, self.rng.choice(self.fronts)
        match rng.choices(
            ("submit", "lane", "report", "cancel", "time", "kill", "cut", "leave"),
            (12, 30, 30, 4, 3, 0.3, 0.3, 0.1),
        )[0]:
            case "submit":
                self.submit(front)
            case "lane":
                self.lanes[rng.randrange(NUM_LANES)].turn()
            case "report":
                self.deliver(front, rng.randrange(NUM_LANES))
            case "cancel" if front.asked:
                some = rng.sample(front.asked, min(len(front.asked), rng.randint(1, 6)))
                for each in some:
                    each.is_cancelled = True
                front.client.cancel(*(each.ticket for each in some))
            case "time":
                self.clock.now_s += rng.random()
            case "kill":
                self.kill(rng.randrange(NUM_LANES))
            case "cut":
                front.wires[rng.randrange(NUM_LANES)].cut(rng)
            case "leave":
                self.leave(front)

    def submit(self, front: Front) -> None:
        rng = self.rng
        is_streamed, deadline_s = rng.random() < 0.3, None
        if rng.random() < 0.2:
            deadline_s = self.clock.now_s + rng.random() * 5
        inputs: list[tuple[tuple[int, ...], DecodingParameters]] = []
        for _ in range(rng.choice((1, 1, 1, 2, 20))):
            self.num_fresh += 1
            sampled: dict[str, Any] = (
                {"temperature": 1.0, "seed": rng.randrange(5)} if rng.random() < 0.3 else {}
            )
            parameters = DecodingParameters(
                max_tokens=rng.randint(1, 12),
                beam_size=1 if sampled else rng.choice((1, 1, 1, 3, 8)),
                align=rng.random() < 0.1,
                **sampled,
            )
            inputs.append(((self.num_fresh, *[0] * rng.choice((1, 1, 90))), parameters))
        try:
            tickets = front.client.submit_all(inputs, deadline_s=deadline_s, is_streamed=is_streamed)
        except Overloaded:
            return
        for ticket, (input_ids, parameters) in zip(tickets, inputs, strict=True):
            asked = Asked(ticket, input_ids, parameters)
            asked.deadline_s, asked.is_streamed = deadline_s, is_streamed
            front.asked.append(asked)
            task = asyncio.get_running_loop().create_task(asked.follow())
            self.tasks.add(task)

    def deliver(self, front: Front, lane: int) -> None:
        wire = front.wires[lane]
        while wire.reports and self.rng.random() < 0.8:
            content = wire.reports.popleft()
            if content is not None:
                front.client.receive(lane, decode_report(content))
                continue
            front.client.remove_lane(lane)
            self.connect(front, lane)
            return

    def kill(self, lane: int) -> None:
        process = self.lanes[lane]
        for wire in (*process.wires.values(), *(wire for _, wire in process.joining)):
            wire.cut(self.rng)
        self.lanes[lane] = LaneProcess(self)

    def leave(self, front: Front) -> None:
        """A front's process dies, another one comes."""
        for wire in front.wires.values():
            wire.end()
        self.fronts.remove(front)
        self.gone.append(front)
        self.add_front()

    def check_answers(self, front: Front) -> None:
        for each in front.asked:
            [outcome] = each.outcomes
            right = answer(each.input_ids, each.parameters).token_ids
            if isinstance(outcome, Decoded):
                assert outcome.best.token_ids == right
                assert not each.is_streamed or tuple(each.streamed) == right
            else:
                assert tuple(each.streamed) == right[: len(each.streamed)]
            if isinstance(outcome, Cancelled):
                assert each.is_cancelled
            if isinstance(outcome, DeadlineExceeded):
                assert each.deadline_s is not None
                assert self.clock.now_s >= each.deadline_s
            if isinstance(outcome, EngineError):
                assert self.may_fail

    def check_nothing_is_left(self) -> None:
        for process in self.lanes.values():
            assert not process.lane.rows
            assert not process.lane.alignments
            assert process.scheduler.num_used_rows == process.scheduler.num_waiting_rows == 0
            assert not process.scheduler.has_work
            assert process.scheduler._room == LaneRoom(NUM_SLOTS, NUM_RESERVED, MAX_COST)
            assert not any(process.worker._sequences.values())
            assert not process.worker._calls
            assert not process.worker._reports._events
            assert process.worker._sequences.keys() <= {(MODEL, front.number) for front in self.fronts}
            assert process.worker._reports._fronts.keys() == process.worker._sequences.keys()
        for front in self.fronts:
            dispatcher = front.client._dispatcher
            assert not front.client._pending
            assert front.client.occupancy()[0] == front.client.occupancy()[2] == 0
            assert dispatcher.num_waiting == dispatcher._num_shared_used == 0
            assert not dispatcher._small
            assert len(dispatcher._lanes) == NUM_LANES
            for lane in dispatcher._lanes.values():
                assert lane.room == LaneRoom(NUM_SLOTS, NUM_RESERVED, MAX_COST)
                assert not lane.sent
                assert not lane.started
                assert lane.num_sent_rows == lane.num_started_rows == lane.num_long == 0
                assert lane.num_other_rows == lane.num_other_reserved == 0, "of others that have ended"


async def finish(world: World) -> None:
    """Nothing bad happens any more: all that was asked for has to end."""
    for _ in range(3000):
        for process in world.lanes.values():
            process.turn()
        for front in world.fronts:
            for lane in world.lanes:
                world.deliver(front, lane)
        await asyncio.sleep(0)
        if all(each.outcomes for front in world.fronts for each in front.asked) and not world.is_busy:
            return
    raise AssertionError("some wait for ever")


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_is_lost_and_nothing_drifts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(client_module, "time", clock)
    monkeypatch.setattr(ticket_module, "time", clock)
    monkeypatch.setattr(worker_module, "time", clock)
    monkeypatch.setattr(client_module, "_EXPIRY_INTERVAL_S", 0.0)
    monkeypatch.setattr(worker_module._log, "exception", lambda *_, **__: None)
    world = World(seed, clock)
    world.may_fail = seed % 3 == 0
    for _ in range(NUM_TURNS):
        for process in world.lanes.values():
            process.lane.fails = 0.05 * world.may_fail
        for _ in range(4):
            world.act()
        await asyncio.sleep(0)
    for process in world.lanes.values():
        process.lane.fails = 0.0
    await finish(world)
    for process in world.lanes.values():
        process.turn()
    for front in world.fronts:
        world.check_answers(front)
    world.check_nothing_is_left()
    for front in world.gone:
        front.client.close()
    await asyncio.gather(*world.tasks)
