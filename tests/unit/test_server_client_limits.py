"""Limits of a client, over random histories and by a clock that the test moves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.server.fronts.processes.clients import ClientMemory, OtherFronts
from dragoman.server.requests.client_limits import ClientLimits, Refusal

CLIENTS = ("ada", "ben", "cy")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "begin", "pay", "end", "wait"]),
            st.sampled_from(CLIENTS),
            st.integers(1, 40),
        ),
        max_size=80,
    ),
    st.integers(0, 3),
    st.integers(0, 20),
    st.integers(1, 50),
)
def test_no_client_has_more_than_its_limits(
    history: list[tuple[str, str, int]], max_calls: int, rate: int, burst: int
) -> None:
    limits = ClientLimits(max_calls=max_calls, tokens_a_second=rate, burst_tokens=burst)
    now_s = 0.0
    running = dict.fromkeys(CLIENTS, 0)
    paid: dict[str, list[tuple[float, int]]] = {client: [] for client in CLIENTS}
    for what, client, amount in history:
        if what == "wait":
            now_s += amount / 10
        elif what == "begin":
            refusal = limits.begin(client, now_s)
            if refusal is None:
                running[client] += 1
                assert not max_calls or running[client] <= max_calls
                if rate:  # what was paid in any time before is what the bucket held and got at most
                    for since_s, _ in paid[client]:
                        used = sum(tokens for at_s, tokens in paid[client] if at_s >= since_s)
                        assert used < burst + (now_s - since_s) * rate + 1e-6
            elif refusal.reason == "client_calls":
                assert running[client] == max_calls
            else:
                assert refusal.delay_s is not None
                assert limits.begin(client, now_s + refusal.delay_s - 1 / rate - 1e-6) is not None
                return
        elif running[client]:
            if what == "pay":
                limits.pay(client, amount, now_s)
                paid[client].append((now_s, amount))
            else:
                limits.end(client, now_s)
                running[client] -= 1


def test_a_client_that_owes_tokens_is_refused_until_it_has_paid() -> None:
    limits = ClientLimits(tokens_a_second=10, burst_tokens=100)
    assert limits.begin("ada", 0.0) is None
    limits.pay("ada", 150, 0.0)
    refused = limits.begin("ada", 0.0)
    assert refused is not None
    assert refused.reason == "client_tokens"
    assert refused.delay_s == pytest.approx(5.1)
    assert limits.begin("ada", 0.0, uses_tokens=False) is None, "listing models takes no tokens"
    assert limits.begin("ben", 0.0) is None
    assert limits.begin("ada", 4.9) is not None
    assert limits.begin("ada", 5.1) is None


def test_the_rate_holds_in_the_long_run() -> None:
    limits = ClientLimits(tokens_a_second=100, burst_tokens=500)
    num_tokens, now_s = 0, 0.0
    while now_s < 100:
        if limits.begin("ada", now_s) is None:
            limits.pay("ada", 70, now_s)
            limits.end("ada", now_s)
            num_tokens += 70
        now_s += 0.01
    assert 100 * 100 <= num_tokens <= 500 + 100 * 100 + 70


def test_idle_clients_are_forgotten_and_many_addresses_take_bounded_memory() -> None:
    limits = ClientLimits(max_calls=1, tokens_a_second=10, burst_tokens=10, max_clients=100)
    assert limits.begin("runs", 0.0) is None
    for number in range(10_000):
        name = f"2001:db8::{number:x}"
        assert limits.begin(name, 0.0) is None
        limits.pay(name, 1000, 0.0)
        limits.end(name, 0.0)
        assert len(limits) <= 101
    assert limits.begin("runs", 0.0) == Refusal("client_calls", None), "a client with calls is kept"
    assert limits.begin(name, 0.0) is not None, "the last ones are known"
    for second in range(200, 300):  # all have paid by then
        limits.begin("late", second)
        limits.end("late", second)
    for number in range(200):
        limits.begin(f"new {number}", 300.0)
        limits.end(f"new {number}", 300.0)
    assert len(limits) < 10


def test_limits_that_change_hold_from_then_on() -> None:
    limits = ClientLimits()
    assert not limits.are_on
    limits.change(max_calls=1, tokens_a_second=0, burst_tokens=0)
    assert limits.are_on
    assert limits.begin("ada", 0.0) is None
    assert limits.begin("ada", 0.0) is not None
    limits.change(max_calls=2, tokens_a_second=0, burst_tokens=0)
    assert limits.begin("ada", 0.0) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "begin", "pay", "end", "wait", "die"]),
            st.integers(0, 2),
            st.sampled_from(CLIENTS),
            st.integers(1, 40),
        ),
        max_size=80,
    ),
    st.integers(1, 20),
    st.integers(1, 50),
)
def test_several_fronts_hold_a_client_to_its_limits_together(
    history: list[tuple[str, int, str, int]], rate: int, burst: int
) -> None:
    memory = ClientMemory(3)

    def front(place: int) -> ClientLimits:
        return ClientLimits(
            max_calls=3,
            tokens_a_second=rate,
            burst_tokens=burst,
            elsewhere=OtherFronts(memory.fd, place, 3),
        )

    fronts = [front(place) for place in range(3)]
    running = {(place, client): 0 for place in range(3) for client in CLIENTS}
    paid = dict.fromkeys(CLIENTS, 0)
    now_s = 1.0
    for what, place, client, amount in history:
        if what == "wait":
            now_s += amount / 10
        elif what == "die":
            memory.forget_calls(place)
            fronts[place] = front(place)
            running |= {(place, each): 0 for each in CLIENTS}
        elif what == "begin":
            if fronts[place].begin(client, now_s) is None:
                running[place, client] += 1
                assert sum(running[each, client] for each in range(3)) <= 3
                assert paid[client] < burst + (now_s - 1.0) * rate + 1e-6
        elif running[place, client]:
            if what == "pay":
                fronts[place].pay(client, amount, now_s)
                paid[client] += amount
            else:
                fronts[place].end(client, now_s)
                running[place, client] -= 1
    memory.close()
