"""Callers who send mixed calls and know what each must get: they wait, leave, vanish, send half a call."""

import asyncio
import contextlib
import math
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from tests.integration.raw_http2 import RawClient
from tests.load.cases import STREAMED, Case, joined
from tests.load.crowd import counted

__all__ = ["Plan", "Tally", "call_all"]

PATIENCE_S = 60.0
HALF_OPEN_S = 3.0
MAX_HALF_OPEN = 16
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing resets the connection and throws away what was not sent."""
BEHAVIOURS = {"waits": 860, "cancels": 60, "deadline": 60, "disconnects": 12, "half-open": 8}
"""How callers behave, in how many of a thousand calls."""


@dataclass(frozen=True)
class Plan:
    """What one process of callers does.

    Attributes:
        num_calls: in all; a connection that is broken off or half open counts as one.
        num_callers: calls at one time.
        end_s: on the clock `time.monotonic`: no call begins later.
    """

    target: str
    cases: Sequence[Case]
    num_calls: int
    seed: int
    num_callers: int = 24
    num_channels: int = 3
    end_s: float | None = None


@dataclass
class Tally:
    """What came of them.

    Attributes:
        outcomes: of calls, by behaviour and outcome.
        kinds: calls that were answered as they must be, by what they asked for.
        statuses: of all calls that got a status from the server, by its name.
        num_begun: calls, whatever came of them.
        num_unknown: calls that were given up: the server may have answered them or not.
        wrong: some calls that got something else than they must.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    num_begun: int = 0
    num_unknown: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count what another process counted as well."""
        self.outcomes += other.outcomes
        self.kinds += other.kinds
        self.statuses += other.statuses
        self.num_begun += other.num_begun
        self.num_unknown += other.num_unknown
        self.wrong += other.wrong

    def is_wrong(self, behaviour: str, case: Case, what: str) -> None:
        """Keep what a call got that it must not get."""
        self.outcomes[behaviour, "wrong"] += 1
        if len(self.wrong) < 5:
            self.wrong.append(f"{case.kind} {case.path} {case.message[:200]!r}: {what}")


def call_all(plan: Plan) -> Tally:
    """Make all calls of the plan; for a process of its own."""
    return asyncio.run(_Callers(plan).run())


class _Callers:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self._tally = Tally()
        self._half_open: list[socket.socket] = []
        self._num_left = plan.num_calls

    async def run(self) -> Tally:
        async with _channels(self._plan) as channels, asyncio.TaskGroup() as callers:
            for number in range(self._plan.num_callers):
                callers.create_task(self._call_again_and_again(channels[number % len(channels)]))
        for each in self._half_open:
            each.close()
        return self._tally

    async def _call_again_and_again(self, channel: grpc.aio.Channel) -> None:
        behaviours, weights = list(BEHAVIOURS), list(BEHAVIOURS.values())
        while self._num_left > 0 and time.monotonic() < (self._plan.end_s or math.inf):
            self._num_left -= 1
            self._tally.num_begun += 1
            [behaviour] = self._rng.choices(behaviours, weights)
            case = self._rng.choice(self._plan.cases)
            match behaviour:
                case "disconnects":
                    await asyncio.to_thread(self._disconnect, case)
                case "half-open":
                    await asyncio.to_thread(self._open_half, case)
                case _:
                    await self._call(channel, behaviour, case)
            if self._num_left % 50 == 0:
                counted(50)

    async def _call(self, channel: grpc.aio.Channel, behaviour: str, case: Case) -> None:
        timeout_s = self._rng.uniform(0.001, 0.03) if behaviour == "deadline" else PATIENCE_S
        call: asyncio.Future[list[bytes]] = asyncio.ensure_future(_messages(channel, case, timeout_s))
        began_s = time.monotonic()
        if behaviour == "cancels":
            await asyncio.wait([call], timeout=self._rng.uniform(0.0, 0.02))
            call.cancel()
        try:
            messages = await call
        except asyncio.CancelledError:
            self._tally.outcomes[behaviour, "cancelled"] += 1
            self._tally.num_unknown += 1
        except grpc.aio.AioRpcError as error:
            self._ended(behaviour, case, error)
        else:
            self._tally.statuses["OK"] += 1
            self._compare(behaviour, case, messages)
        if time.monotonic() - began_s > PATIENCE_S + 1:
            self._tally.is_wrong(behaviour, case, "ended after its deadline")

    def _ended(self, behaviour: str, case: Case, error: grpc.aio.AioRpcError) -> None:
        name = error.code().name
        if behaviour == "deadline" and name in {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}:
            self._tally.outcomes[behaviour, name] += 1
            self._tally.num_unknown += 1  # the client's clock may have ended what the server answered
            return
        self._tally.statuses[name] += 1
        if name == case.code:
            self._tally.outcomes[behaviour, "right"] += 1
            self._tally.kinds[case.kind] += 1
        else:
            self._tally.is_wrong(behaviour, case, f"{name}: {error.details()}")

    def _compare(self, behaviour: str, case: Case, messages: Sequence[bytes]) -> None:
        try:
            answer = joined(case.path, messages)
        except ValueError as error:
            self._tally.is_wrong(behaviour, case, str(error))
            return
        if case.code == "OK" and answer == case.answer:
            self._tally.outcomes[behaviour, "right"] += 1
            self._tally.kinds[case.kind] += 1
        else:
            self._tally.is_wrong(behaviour, case, f"got {answer[:200]!r} for {case.answer[:200]!r}")

    def _disconnect(self, case: Case) -> None:
        """Send a call and break the connection off."""
        with RawClient(self._port, window=65_535) as client:
            client.call(case.path, case.message[:16_000])
            time.sleep(self._rng.uniform(0.0, 0.02))
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._tally.num_unknown += 1
        self._tally.outcomes["disconnects", "broken off"] += 1

    def _open_half(self, case: Case) -> None:
        """Send the beginning of a call on a connection that then says nothing."""
        if len(self._half_open) >= MAX_HALF_OPEN:
            self._half_open.pop(0).close()
        client = RawClient(self._port, window=65_535)
        stream: int = client.http2.get_next_available_stream_id()
        client.http2.send_headers(
            stream,
            [
                (":method", "POST"), (":scheme", "http"), (":path", case.path), (":authority", "localhost"),
                ("content-type", "application/grpc"), ("te", "trailers"),
            ],
        )  # fmt: skip
        client.http2.send_data(stream, b"\0" + len(case.message).to_bytes(4, "big"))
        client.send()
        self._half_open.append(client.socket)
        self._tally.num_unknown += 1
        self._tally.outcomes["half-open", "left open"] += 1

    @property
    def _port(self) -> int:
        return int(self._plan.target.rpartition(":")[2])


async def _messages(channel: grpc.aio.Channel, case: Case, timeout_s: float) -> list[bytes]:
    method: Any = (channel.unary_stream if case.path in STREAMED else channel.unary_unary)(case.path)
    call = method(case.message, timeout=timeout_s)
    try:
        return [message async for message in call] if case.path in STREAMED else [await call]
    finally:
        call.cancel()


@contextlib.asynccontextmanager
async def _channels(plan: Plan) -> AsyncIterator[list[grpc.aio.Channel]]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(plan.target, options))
            for _ in range(plan.num_channels)
        ]
