"""What one client may do, however many there are: calls at one time, tokens a second. Pure: the time is handed in.

Tokens go by a bucket. It fills at a steady rate up to its size. A call is taken while anything is in the bucket, and
pays for its tokens when they are known: those of its inputs when it is queued, those of its answers when it ends. So a
bucket may owe tokens, and its client is refused until it has paid them. In the long run a client gets its rate exactly.

State is kept for clients that have calls or a bucket that is not full, and for at most `max_clients`: beyond these the
one that has called least lately is forgotten, with what it owes.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

__all__ = ["MAX_CLIENTS", "ClientLimits", "Elsewhere", "Refusal"]

MAX_CLIENTS = 16_384
"""Of which something is kept: some 300 bytes each. Those with running calls are kept in any case: as many as there are
calls at the most."""
_NUM_LOOKED_AT = 2
"""Clients that are looked at for being idle when a call begins: more than come in, so that the idle ones go."""


class Refusal(NamedTuple):
    """Why a call is refused, and after how long another one would be taken; None: nobody knows."""

    reason: Literal["client_calls", "client_tokens"]
    delay_s: float | None


class Elsewhere(Protocol):
    """What clients do in the server's other fronts."""

    def use_of(self, client: str) -> tuple[int, float]:
        """Return the calls that run there, and the tokens that were paid for there, ever."""

    def balances_of(self, client: str) -> list[tuple[float, float]]:
        """Return the balances of the client's buckets that are known, each with its moment."""

    def publish(self, client: str, num_calls: int, num_tokens: float, balance: float, now_s: float) -> None:
        """Add calls and tokens to those that this front has published, and publish the client's balance now."""


@dataclass(slots=True)
class _Client:
    """What a client does here.

    Attributes:
        balance: of its bucket; negative where it owes tokens.
        seen_s: the moment of `balance`.
        num_calls: that run.
        num_tokens_elsewhere: that it had paid for in other fronts by then.
    """

    balance: float
    seen_s: float
    num_calls: int = 0
    num_tokens_elsewhere: float = 0.0


class ClientLimits:
    """Counts what each client does.

    Attributes:
        max_calls: of a client at one time; 0: any number.
        tokens_a_second: that fill its bucket; 0: it may use any number.
        burst_tokens: that its bucket holds.
        elsewhere: knows the server's other fronts; None: there are none.
    """

    def __init__(
        self,
        *,
        max_calls: int = 0,
        tokens_a_second: float = 0.0,
        burst_tokens: float = 0.0,
        max_clients: int = MAX_CLIENTS,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """Keep something of at most `max_clients`."""
        self.max_calls = max_calls
        self.tokens_a_second = tokens_a_second
        self.burst_tokens = burst_tokens
        self._max_clients = max_clients
        self.elsewhere = elsewhere
        self._clients: OrderedDict[str, _Client] = OrderedDict()  # the one that called least lately first

    def __len__(self) -> int:
        return len(self._clients)

    def change(self, *, max_calls: int, tokens_a_second: float, burst_tokens: float) -> None:
        """Go by other limits from now on. Buckets hold what they held, up to the new size."""
        self.max_calls = max_calls
        self.tokens_a_second, self.burst_tokens = tokens_a_second, burst_tokens

    @property
    def are_on(self) -> bool:
        """Whether there is any limit."""
        return self.max_calls > 0 or self.tokens_a_second > 0

    def begin(self, name: str, now_s: float, *, uses_tokens: bool = True) -> Refusal | None:
        """Count a call of a client, unless it is one too many. A call that `uses_tokens` needs some in the bucket."""
        client = self._client(name, now_s)
        num_elsewhere = 0
        if self.elsewhere is not None:
            num_elsewhere, num_tokens = self.elsewhere.use_of(name)
            client.balance -= num_tokens - client.num_tokens_elsewhere
            client.num_tokens_elsewhere = num_tokens
        if self.max_calls and client.num_calls + num_elsewhere >= self.max_calls:
            return Refusal("client_calls", None)
        if self.tokens_a_second and uses_tokens and client.balance <= 0:
            return Refusal("client_tokens", (1 - client.balance) / self.tokens_a_second)
        client.num_calls += 1
        self._publish(name, client, 1, 0, now_s)
        return None

    def pay(self, name: str, num_tokens: int, now_s: float) -> None:
        """Take tokens from the bucket of a client that has a call."""
        if self.tokens_a_second and (client := self._clients.get(name)) is not None:
            self._fill(client, now_s)
            client.balance -= num_tokens
            self._publish(name, client, 0, num_tokens, now_s)

    def end(self, name: str, now_s: float) -> None:
        """A call that was counted has ended."""
        client = self._clients[name]
        self._fill(client, now_s)
        client.num_calls -= 1
        self._publish(name, client, -1, 0, now_s)

    def _client(self, name: str, now_s: float) -> _Client:
        client = self._clients.get(name)
        if client is not None:
            self._clients.move_to_end(name)
            self._fill(client, now_s)
            return client
        client = _Client(self.burst_tokens, now_s)
        if self.elsewhere is not None:
            _, client.num_tokens_elsewhere = self.elsewhere.use_of(name)
            for balance, seen_s in self.elsewhere.balances_of(name):
                client.balance = min(client.balance, balance + (now_s - seen_s) * self.tokens_a_second)
        self._forget_some(now_s)
        self._clients[name] = client
        return client

    def _forget_some(self, now_s: float) -> None:
        for _ in range(min(_NUM_LOOKED_AT, len(self._clients))):
            name, client = next(iter(self._clients.items()))
            self._fill(client, now_s)
            if client.num_calls:
                self._clients.move_to_end(name)
            elif client.balance >= self.burst_tokens or len(self._clients) >= self._max_clients:
                del self._clients[name]
            else:
                return

    def _fill(self, client: _Client, now_s: float) -> None:
        filled = client.balance + (now_s - client.seen_s) * self.tokens_a_second
        client.balance = min(filled, self.burst_tokens)
        client.seen_s = now_s

    def _publish(self, name: str, client: _Client, num_calls: int, num_tokens: float, now_s: float) -> None:
        if self.elsewhere is not None:
            self.elsewhere.publish(name, num_calls, num_tokens, client.balance, now_s)
