"""A front's client of lanes that the test plays itself: dispatch, events, and lanes that come and go."""

import asyncio
import threading
import time
from typing import Any

import pytest

from dragoman.server.config import EngineSettings
from dragoman.server.decoding.hypothesis import FinishReason, Hypothesis
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.api import (
    Cancel,
    Command,
    EngineFacts,
    Event,
    Failed,
    FailureReason,
    Finished,
    GraphRun,
    LaneLoad,
    PrefixUse,
    Report,
    Request,
    Started,
    Submit,
    Tokens,
)
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.ticket import Ticket
from dragoman.server.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    Overloaded,
    RequestError,
)
from dragoman.server.priority import Priority

GREEDY = DecodingParameters(max_tokens=9)
NO_LOAD = LaneLoad(0, 0)


class PlayedLane:
    """A link that keeps what is sent, and answers when it is told to."""

    def __init__(self, client: EngineClient, lane: int) -> None:
        self.client, self.lane = client, lane
        self.commands: list[Command] = []
        client.add_lane(lane, self)

    def send(self, command: Command) -> None:
        self.commands.append(command)

    @property
    def requests(self) -> list[Request]:
        return [each for command in self.commands if isinstance(command, Submit) for each in command.requests]

    @property
    def cancelled(self) -> list[int]:
        return [id_ for command in self.commands if isinstance(command, Cancel) for id_ in command.ids]

    def report(self, *events: Event, **fields: Any) -> None:
        self.client.receive(self.lane, Report(list(events), **{"graph_runs": [], "load": NO_LOAD, **fields}))

    def start(self, *tickets: Ticket) -> None:
        self.report(*(Started(each.id, 1.0, 2.0, 1) for each in tickets))

    def finish(self, *tickets: Ticket) -> None:
        self.report(*(Finished(each.id, (hypothesis(each.id),)) for each in tickets))


class Observed:
    def __init__(self) -> None:
        self.steps: list[tuple[str, float, int]] = []
        self.num_failed = 0

    def observe_step(self, graph: str, seconds: float, rows: int) -> None:
        self.steps.append((graph, seconds, rows))

    def observe_failed_steps(self, num_steps: int) -> None:
        self.num_failed += num_steps


def hypothesis(token_id: int) -> Hypothesis:
    return Hypothesis((token_id,), FinishReason.LENGTH, -1.0, 1, -1.0)


def make(num_lanes: int = 1, **settings: Any) -> tuple[EngineClient, list[PlayedLane], Observed]:
    given = EngineSettings(**{"slots_per_lane": 2, "max_waiting": 20, **settings})
    facts = EngineFacts(
        provider="cpu",
        kernels="none",
        num_lanes=num_lanes,
        threads_per_lane=1,
        slots_per_lane=given.slots_per_lane,
        reserved_rows=0,
        max_step_cost=1000,
        vocabulary_size=100,
        shares_prefix_cache=False,
    )
    observed = Observed()
    client = EngineClient(facts, given, observed)
    return client, [PlayedLane(client, lane) for lane in range(num_lanes)], observed


async def test_a_request_goes_out_whole_and_its_answer_comes_back() -> None:
    client, [lane], _ = make()
    deadline_s = time.monotonic() + 60
    [ticket] = client.submit_all([([5, 6], GREEDY)], deadline_s=deadline_s, is_streamed=True)
    [request] = lane.requests
    assert (request.id, request.input_ids, request.parameters) == (ticket.id, [5, 6], GREEDY)
    assert (request.deadline_s, request.is_streamed) == (deadline_s, True)
    assert client.occupancy() == (0, 2, 0, 1)
    lane.start(ticket)
    assert client.occupancy() == (1, 2, 1, 0)
    assert (ticket.admitted_s, ticket.first_token_s, ticket.num_first_tokens) == (1.0, 2.0, 1)
    lane.report(Tokens(ticket.id, [7, 8]))
    lane.report(Tokens(ticket.id, [9]))
    lane.finish(ticket)
    assert [token_ids async for token_ids in ticket] == [[7, 8, 9]], "joined for a reader that was late"
    assert (await ticket.result()).hypotheses == (hypothesis(ticket.id),)
    assert client.occupancy() == (0, 2, 0, 0)


async def test_the_sequences_of_a_call_have_its_id_and_no_other() -> None:
    client, [lane], _ = make(slots_per_lane=4)
    client.submit_all([([1], GREEDY), ([2], GREEDY)])
    client.submit([3], GREEDY)
    first, second, other = (request.call_id for request in lane.requests)
    assert first == second != other
    assert len({request.id for request in lane.requests}) == 3


async def test_a_lane_hears_of_the_client_and_the_priority_of_a_call() -> None:
    client, [lane], _ = make()
    client.submit_all([([1], GREEDY)], client="ada", priority=Priority.HIGH)
    client.submit([2], GREEDY)
    assert [(each.client, each.priority) for each in lane.requests] == [
        ("ada", Priority.HIGH),
        ("", Priority.NORMAL),
    ]


async def test_tokens_may_wait_up_to_their_bound() -> None:
    client, [lane], _ = make(max_waiting_tokens=8)
    client.submit_all(
        [([1] * 100, GREEDY)] * 4
    )  # three on the lane, and one that waits: it came to an empty queue
    with pytest.raises(Overloaded):
        client.check_room(1, 1)
    with pytest.raises(Overloaded):
        client.submit_all([([1], GREEDY)])
    lane.finish(*(Ticket(print, each.id, 0.0, is_streamed=False) for each in lane.requests[:1]))
    client.check_room(1, 100)
    client.submit_all([([1] * 6, GREEDY)])
    client.check_room(1, 2)
    with pytest.raises(Overloaded):
        client.check_room(1, 3)
    client.check_room(1, 4, priority=Priority.HIGH)
    with pytest.raises(Overloaded):
        client.check_room(1, 1, priority=Priority.LOW)


async def test_a_lane_gets_what_it_has_room_for_and_the_rest_as_room_comes() -> None:
    client, [lane], _ = make()
    tickets = client.submit_all([([1], GREEDY)] * 12)
    assert len(lane.requests) == 3, "one more than it has rows"
    lane.start(*tickets[:2])
    lane.finish(*tickets[:2])
    assert [each.id for each in lane.requests] == [each.id for each in tickets[:5]]


async def test_a_refused_call_leaves_nothing() -> None:
    client, [lane], _ = make(max_waiting=3)
    client.submit_all([([1], GREEDY)] * 4)
    before = client.occupancy()
    with pytest.raises(Overloaded) as refused:
        client.submit_all([([1], GREEDY)] * 30)
    assert refused.value.retry_delay_s > 0
    assert client.occupancy() == before
    assert len(lane.requests) == 3


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (FailureReason.CANCELLED, Cancelled),
        (FailureReason.DEADLINE, DeadlineExceeded),
        (FailureReason.LOST, EngineUnavailable),
        (FailureReason.ERROR, EngineError),
    ],
)
async def test_each_failure_is_an_error_of_its_own(reason: FailureReason, error: type[RequestError]) -> None:
    client, [lane], _ = make()
    ticket = client.submit([1], GREEDY)
    lane.report(Failed(ticket.id, reason, "why"))
    for _ in range(2):
        with pytest.raises(error):
            await ticket.result()
    assert client.occupancy() == (0, 2, 0, 0)


async def test_cancelling_here_is_at_once_and_there_by_a_message() -> None:
    client, [lane], _ = make()
    tickets = client.submit_all([([1], GREEDY)] * 5)
    sent, waiting = tickets[0], tickets[-1]
    client.cancel(sent, waiting)
    client.cancel(sent, waiting)  # harmless
    assert lane.cancelled == [sent.id]
    with pytest.raises(Cancelled):
        await waiting.result()
    assert sent.finished_s is None, "the lane says when its rows are free"
    lane.report(Failed(sent.id, FailureReason.CANCELLED))
    with pytest.raises(Cancelled):
        await sent.result()
    assert waiting.id not in [request.id for request in lane.requests]


async def test_an_answer_that_overtakes_its_cancellation_counts() -> None:
    client, [lane], _ = make()
    ticket = client.submit([1], GREEDY)
    ticket.cancel()
    lane.start(ticket)
    lane.finish(ticket)
    assert (await ticket.result()).best.token_ids == (ticket.id,)
    lane.report(Failed(ticket.id, FailureReason.CANCELLED))  # of one that is over: ignored


async def test_what_waits_here_ends_at_its_deadline_though_no_lane_says_a_word() -> None:
    client, [lane], _ = make(slots_per_lane=1)
    client.submit_all([([1], GREEDY)] * 2)
    late = client.submit([2], GREEDY, deadline_s=time.monotonic() + 0.05)
    async with asyncio.timeout(20):
        with pytest.raises(DeadlineExceeded):
            await late.result()
    assert late.id not in [request.id for request in lane.requests]


async def test_a_dead_lane_loses_what_had_started_and_nothing_else() -> None:
    client, lanes, _ = make(num_lanes=2)
    tickets = client.submit_all([([1], GREEDY)] * 4)
    by_id = {each.id: each for each in tickets}
    dying, other = lanes
    started, waiting = (by_id[each.id] for each in dying.requests)
    dying.start(started)
    client.remove_lane(0)
    with pytest.raises(EngineUnavailable):
        await started.result()
    dying.finish(waiting)  # what it sent before it died comes late: ignored
    assert waiting.finished_s is None
    other.finish(*(by_id[each.id] for each in other.requests))
    assert waiting.id in [request.id for request in other.requests]
    other.finish(waiting)
    assert (await waiting.result()).best.token_ids == (waiting.id,)


async def test_calls_wait_for_a_lane_that_replaces_the_last_one() -> None:
    client, [lane], _ = make()
    client.remove_lane(0)
    ticket = client.submit([1], GREEDY)
    replacing = PlayedLane(client, 0)
    assert [request.id for request in replacing.requests] == [ticket.id]
    assert not lane.requests
    replacing.finish(ticket)
    await ticket.result()


async def test_a_cancelled_sequence_of_a_dead_lane_is_cancelled() -> None:
    client, _, _ = make()
    ticket = client.submit([1], GREEDY)
    ticket.cancel()
    client.remove_lane(0)
    with pytest.raises(Cancelled):
        await ticket.result()


async def test_closing_fails_what_is_left_and_refuses_what_comes() -> None:
    client, [lane], _ = make()
    tickets = client.submit_all([([1], GREEDY)] * 9)
    client.close()
    for ticket in tickets:
        with pytest.raises(EngineUnavailable, match="the engine was closed"):
            await ticket.result()
    lane.finish(tickets[0])
    with pytest.raises(EngineUnavailable, match="the engine was closed"):
        client.submit([1], GREEDY)
    client.close("again")
    assert client.occupancy()[2:] == (0, 0)


async def test_closing_from_a_thread_while_the_first_call_comes_leaves_nothing_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, [lane], _ = make()
    running_loop = asyncio.get_running_loop

    def closed_meanwhile() -> asyncio.AbstractEventLoop:
        monkeypatch.undo()
        closing = threading.Thread(target=client.close)
        closing.start()
        closing.join()
        return running_loop()

    monkeypatch.setattr(asyncio, "get_running_loop", closed_meanwhile)
    with pytest.raises(EngineUnavailable, match="the engine was closed"):
        client.submit([1], GREEDY)
    assert lane.commands == []


async def test_a_caller_that_leaves_does_not_take_the_answer_along() -> None:
    client, [lane], _ = make()
    ticket = client.submit([1], GREEDY)
    leaving, staying = (asyncio.create_task(ticket.result()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    lane.finish(ticket)
    assert (await staying).best.token_ids == (ticket.id,)
    assert leaving.cancelled() or (await asyncio.gather(leaving, return_exceptions=True))


async def test_what_lanes_computed_reaches_the_observer() -> None:
    client, lanes, observed = make(num_lanes=2)
    runs = [GraphRun("encode", 0.1, 1), GraphRun("decode", 0.2, 3)]
    lanes[0].report(graph_runs=runs, num_failed_steps=2, prefix=PrefixUse(3, 4, 100))
    lanes[1].report(prefix=PrefixUse(5, 6, 50))
    assert observed.steps == [("encode", 0.1, 1), ("decode", 0.2, 3)]
    assert observed.num_failed == 2
    prefix = client.prefix
    assert (prefix.num_reused_tokens, prefix.num_computed_tokens, prefix.num_bytes) == (8, 10, 150)
    client.remove_lane(0)
    assert (prefix.num_reused_tokens, prefix.num_bytes) == (8, 50), (
        "the lane's memory is gone, its work is not"
    )


async def test_other_fronts_on_a_lane_are_made_room_for() -> None:
    client, [lane], _ = make(slots_per_lane=4)
    client.submit([1], GREEDY)
    lane.report(load=LaneLoad(4, 8))  # of another front
    tickets = client.submit_all([([1], GREEDY)] * 9)
    assert len(lane.requests) < 1 + len(tickets)
    lane.report(load=LaneLoad(0, 0))
    assert len(lane.requests) >= 4
