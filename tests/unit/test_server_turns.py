"""Turns of priorities, clients and calls against their promises, over random histories."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.server.engine.queue import Call, Queue, Sequence
from dragoman.server.priority import Priority

MAX_ROWS = 5
Rival = tuple[Any, ...]
"""A priority; with a client; with the number of one of its calls."""
CLIENTS = ("ada", "ben", "cy")
Histories = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "take", "take", "remove", "again"]),
        st.sampled_from(Priority),
        st.sampled_from(CLIENTS),
        st.integers(0, 1),
        st.integers(1, MAX_ROWS),
    ),
    max_size=80,
)
Weights = st.tuples(*[st.integers(1, 6)] * 3)


@dataclass
class Passed:
    """Rows that others have started since one of several rivals last started something, while it waited."""

    rows: dict[Rival, dict[Rival, int]] = field(default_factory=dict)

    def start(self, rival: Rival, num_rows: int, waiting: set[Rival]) -> None:
        """`rival` starts so many rows while those of `waiting` wait."""
        for other in waiting:
            of_other = self.rows.setdefault(other, {})
            of_other[rival] = of_other.get(rival, 0) + num_rows
        self.rows[rival] = {}

    def forget_but(self, waiting: set[Rival]) -> None:
        """The others do not wait any more."""
        self.rows = {rival: rows for rival, rows in self.rows.items() if rival in waiting}


@settings(max_examples=120, deadline=None)
@given(Histories, Weights, st.data())
def test_nobody_waits_for_more_than_a_bounded_number_of_rows(
    history: list[tuple[str, Priority, str, int, int]],
    weights: tuple[int, int, int],
    data: st.DataObject,
) -> None:
    queue = Queue(weights)
    calls = {
        (priority, client, number): Call(client=client, priority=priority)
        for priority in Priority
        for client in CLIENTS
        for number in range(2)
    }
    taken: list[Sequence] = []
    by_class, by_client, by_call = Passed(), Passed(), Passed()

    def waiting(*path: Any) -> set[Rival]:
        """What waits one level below `path`, each as its whole path."""
        depth = len(path)
        return {key[: depth + 1] for key, call in calls.items() if call.waiting and key[:depth] == path}

    for what, priority, client, number, num_rows in history:
        call = calls[priority, client, number]
        if what == "add":
            queue.add(Sequence(3, num_rows=num_rows, call=call))
        elif what == "remove" and call.waiting:
            queue.remove(data.draw(st.sampled_from(list(call.waiting))))
        elif what == "again" and taken:
            queue.put_back(taken.pop())
            by_class, by_client, by_call = Passed(), Passed(), Passed()  # its turns were given back
        elif what == "take" and len(queue):
            in_order = list(queue)
            sequence = queue.first()
            assert in_order[0] is sequence is next(queue.firsts(1))
            assert {each.call for each in queue.firsts(99)} == {
                each for each in calls.values() if each.waiting
            }
            queue.take(sequence)
            taken.append(sequence)
            key = next(each for each, one in calls.items() if one is sequence.call)
            by_class.start(key[:1], sequence.num_rows, waiting())
            by_client.start(key[:2], sequence.num_rows, waiting(key[0]))
            by_call.start(key, sequence.num_rows, waiting(*key[:2]))
        by_class.forget_but({key[:1] for key, one in calls.items() if one.waiting})
        by_client.forget_but({key[:2] for key, one in calls.items() if one.waiting})
        by_call.forget_but({key for key, one in calls.items() if one.waiting})
        for passed in (by_client, by_call):
            assert all(rows <= 2 * MAX_ROWS + 1 for each in passed.rows.values() for rows in each.values())
        for mine, others in by_class.rows.items():
            for other, rows in others.items():
                # It pays for its last sequence, as its weight says; then the other may go first once more.
                assert rows <= MAX_ROWS * weights[other[0]] / weights[mine[0]] + 2 * MAX_ROWS
        assert queue.num_rows == sum(each.num_rows for each in queue)
        assert queue.num_tokens == 3 * len(queue) == 3 * len(list(queue))
        for (*place, _), one in calls.items():
            of_client = [other for (*its_place, _), other in calls.items() if its_place == place]
            assert queue.num_waiting_rows_of(one) == sum(each.num_waiting_rows for each in of_client)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(Priority),
            st.sampled_from(CLIENTS),
            st.lists(st.integers(1, MAX_ROWS), min_size=1, max_size=9),
        ),
        min_size=1,
        max_size=6,
    ),
    Weights,
    st.integers(0, 9),
)
def test_iterating_tells_the_order_in_which_all_are_served(
    calls: list[tuple[Priority, str, list[int]]], weights: tuple[int, int, int], num_before: int
) -> None:
    queue = Queue(weights)
    for priority, client, rows in calls:
        call = Call(client=client, priority=priority)
        for num_rows in rows:
            queue.add(Sequence(1, num_rows=num_rows, call=call))
    for _ in range(min(num_before, len(queue))):  # some members owe rows by then
        queue.take(queue.first())
    told, served = list(queue), []
    while queue:
        served.append(queue.first())
        queue.take(served[-1])
    assert told == served
    assert (queue.num_rows, queue.num_tokens) == (0, 0)


def serve(queue: Queue, num_rows: int) -> dict[str, int]:
    """Start sequences of at least so many rows in their turns; returns the rows of each client."""
    rows: dict[str, int] = {}
    while sum(rows.values()) < num_rows:
        sequence = queue.first()
        queue.take(sequence)
        rows[sequence.call.client] = rows.get(sequence.call.client, 0) + sequence.num_rows
    return rows


def test_a_client_gets_no_more_for_many_calls() -> None:
    queue = Queue()
    for _ in range(200):
        queue.add(Sequence(1, call=Call(client="many")))
    one = Call(client="one")
    for _ in range(100):
        queue.add(Sequence(1, call=one))
    assert serve(queue, 100) == {"many": 50, "one": 50}


def test_a_new_client_waits_for_one_turn_of_each_other() -> None:
    queue = Queue()
    for client in ("ada", "ben"):
        for _ in range(100):
            queue.add(Sequence(1, call=Call(client=client)))
    serve(queue, 51)
    queue.add(newcomer := Sequence(1, call=Call(client="cy")))
    assert newcomer in list(queue)[:3]


def test_a_client_that_comes_anew_with_each_search_still_owes_for_the_last_one() -> None:
    queue = Queue()
    for _ in range(1000):
        queue.add(Sequence(1, call=Call(client="single")))
    rows = {"single": 0, "search": 0}
    search = None
    while sum(rows.values()) < 400:
        if search is None:
            queue.add(search := Sequence(1, num_rows=MAX_ROWS, call=Call(client="search")))
        sequence = queue.first()
        queue.take(sequence)
        rows[sequence.call.client] += sequence.num_rows
        if sequence is search:
            search = None
    assert abs(rows["single"] - rows["search"]) <= 2 * MAX_ROWS


def test_priorities_share_rows_by_their_weights() -> None:
    queue = Queue((16, 4, 1))
    for priority in Priority:
        for _ in range(1000):
            queue.add(Sequence(1, call=Call(client=priority.name, priority=priority)))
    assert serve(queue, 210) == {"HIGH": 160, "NORMAL": 40, "LOW": 10}


def test_high_priority_goes_before_what_came_earlier_and_low_priority_does_not_starve() -> None:
    queue = Queue((16, 4, 1))
    for _ in range(100):
        queue.add(Sequence(1, call=Call(client="low", priority=Priority.LOW)))
    queue.first()
    rows = {"high": 0, "low": 0}
    for _ in range(170):  # each time that a row is free there is another one of high priority
        queue.add(Sequence(1, call=Call(client="high", priority=Priority.HIGH)))
        sequence = queue.first()
        queue.take(sequence)
        rows[sequence.call.client] += 1
    assert rows == {"high": 160, "low": 10}


def test_high_priority_that_comes_one_by_one_saves_nothing_up() -> None:
    queue = Queue((16, 4, 1))
    for _ in range(1000):
        queue.add(Sequence(1, call=Call(client="low", priority=Priority.LOW)))
    order = ""
    for place in range(60):
        if place % 20 == 0:
            queue.add(Sequence(1, call=Call(client="high", priority=Priority.HIGH)))
        sequence = queue.first()
        queue.take(sequence)
        order += sequence.call.client[0]
    assert order == 3 * ("h" + 19 * "l")


def test_what_nobody_waits_for_leaves_nothing_behind() -> None:
    queue = Queue()
    for number in range(1000):
        call = Call(client=f"client {number}", priority=Priority(number % 3))
        queue.add(Sequence(1, num_rows=MAX_ROWS, call=call))
    while queue:
        queue.take(queue.first())
    assert not any(its_class.clients.by_key for its_class in queue._class_of.values())
    assert not list(queue._classes)
