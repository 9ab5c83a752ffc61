"""What clients do in all fronts of a server, in memory that the fronts share, so that limits of a client hold together.

Each front writes a part of its own and reads those of the others, so nothing is locked. A client has a cell by a hash
with a key that is new with each server: nobody can choose whose cell is shared. The memory has no name
(memfd_create(2)) and a fixed size, however many clients there are: half a megabyte for each front, as far as cells are
used. Two clients that share a cell (one of 16,384) count the other's calls and tokens in other fronts as their own.
"""

import hashlib
import mmap
import os
import secrets

__all__ = ["ClientMemory", "OtherFronts"]

_NUM_CELLS = 16_384
_NUM_KEY_BYTES = 16
_HEADER_BYTES = mmap.PAGESIZE
_CALLS, _TOKENS, _BALANCE, _SEEN = range(
    4
)  # of a cell, each a float of eight bytes, which is written at once
_NUM_VALUES = 4
_NUM_FRONT_VALUES = _NUM_CELLS * _NUM_VALUES


class ClientMemory:
    """The memory, as the server process has it.

    Attributes:
        fd: to be handed to the fronts.
        num_fronts: of the server.
    """

    def __init__(self, num_fronts: int) -> None:
        self.fd = os.memfd_create("clients")
        self.num_fronts = num_fronts
        os.ftruncate(self.fd, _HEADER_BYTES + 8 * num_fronts * _NUM_FRONT_VALUES)
        os.pwrite(self.fd, secrets.token_bytes(_NUM_KEY_BYTES), 0)

    def forget_calls(self, front: int) -> None:
        """Front number `front` has died, and its calls with it. The tokens that were used there stay used."""
        OtherFronts(self.fd, front, self.num_fronts).forget_calls()

    def close(self) -> None:
        """Give the memory back, once no front uses it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class OtherFronts:
    """What clients do in the other fronts, for front number `own` (`requests.client_limits.Elsewhere`)."""

    def __init__(self, fd: int, own: int, num_fronts: int) -> None:
        self._key = os.pread(fd, _NUM_KEY_BYTES, 0)
        memory = mmap.mmap(fd, _HEADER_BYTES + 8 * num_fronts * _NUM_FRONT_VALUES)
        self._values = memoryview(memory)[_HEADER_BYTES:].cast("d")
        self._own = own * _NUM_FRONT_VALUES
        self._others = [each * _NUM_FRONT_VALUES for each in range(num_fronts) if each != own]

    def use_of(self, client: str) -> tuple[int, float]:
        """Return the calls that run there, and the tokens that were paid for there, ever."""
        values, cell = self._values, self._cell(client)
        num_calls = num_tokens = 0.0
        for front in self._others:
            num_calls += values[front + cell + _CALLS]
            num_tokens += values[front + cell + _TOKENS]
        return int(num_calls), num_tokens

    def balances_of(self, client: str) -> list[tuple[float, float]]:
        """Return the balances of the client's buckets, each with its moment; the last one here is among them."""
        values, cell = self._values, self._cell(client)
        cells = [front + cell for front in (self._own, *self._others)]
        return [(values[each + _BALANCE], values[each + _SEEN]) for each in cells if values[each + _SEEN]]

    def publish(self, client: str, num_calls: int, num_tokens: float, balance: float, now_s: float) -> None:
        """Add calls and tokens to those that this front has published, and publish the client's balance now."""
        values, cell = self._values, self._own + self._cell(client)
        values[cell + _CALLS] += num_calls
        values[cell + _TOKENS] += num_tokens
        values[cell + _BALANCE] = balance
        values[cell + _SEEN] = now_s

    def forget_calls(self) -> None:
        """No calls run here any more."""
        values = self._values
        for index in range(self._own + _CALLS, self._own + _NUM_FRONT_VALUES, _NUM_VALUES):
            if values[index]:
                values[index] = 0.0

    def _cell(self, client: str) -> int:
        digest = hashlib.blake2b(client.encode(errors="surrogatepass"), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest) % _NUM_CELLS * _NUM_VALUES
