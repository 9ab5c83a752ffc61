"""From a message's bytes to a request: what no valid call needs is refused before it costs memory and time."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from dragoman.server.engine.rate import Backlog
from dragoman.server.errors import FieldViolation, InvalidRequest, Overloaded
from dragoman.server.fronts.grpc.wire_entries import count_entries
from dragoman.server.requests.options import MAX_STOP_STRINGS, MAX_SUPPRESSED_TEXTS, MAX_SUPPRESSED_TOKENS

__all__ = ["Parsing"]

_LARGE_BYTES = 32 * 1024
"""Messages up to this size are parsed at once: within a millisecond, whatever they hold."""
_MAX_WAITING_BYTES = 64 * 1024 * 1024
"""The most bytes of all large messages together that wait for their turn: 16 messages of the default limit,
some 50 ms."""
_ENTRIES_PER_INPUT = 3
"""A pair with its two texts; an input and its prefix are two."""
_OTHER_ENTRIES = MAX_STOP_STRINGS + MAX_SUPPRESSED_TEXTS + MAX_SUPPRESSED_TOKENS + 1024
"""The entries that options may hold; the rest is room for single fields and for those of a newer client."""


class Parsing:
    """Parses messages of all calls; use it from one event loop."""

    def __init__(self, max_inputs: int) -> None:
        """Let a call have up to `max_inputs` inputs."""
        self._max_inputs = max_inputs
        self._max_entries = _ENTRIES_PER_INPUT * max_inputs + _OTHER_ENTRIES
        self._backlog = Backlog()  # in bytes
        self._turn = asyncio.Lock()

    async def parse(self, kind: Descriptor, parse: Callable[[bytes], Any], message: bytes) -> Any:
        """Returns the request that `message` holds, as `parse` makes it. `kind` is the request's type.

        Raises:
            InvalidRequest: the message is not of the method's type, or has more entries than any call may have.
            Overloaded: too many large messages wait already.
        """
        num_bytes = len(message)
        if num_bytes <= _LARGE_BYTES:
            return _parse(parse, message)
        backlog = self._backlog
        if backlog.num_waiting and backlog.num_waiting + num_bytes > _MAX_WAITING_BYTES:
            waiting = f"{backlog.num_waiting} bytes of large messages are waiting to be parsed already"
            raise Overloaded(waiting, backlog.retry_delay_s)
        backlog.begin(num_bytes, time.monotonic())
        try:
            async with self._turn:
                await asyncio.sleep(0)  # one large message in a turn of the event loop
                self._check_entries(kind, message)
                return _parse(parse, message)
        finally:
            backlog.end(num_bytes, time.monotonic())

    def _check_entries(self, kind: Descriptor, message: bytes) -> None:
        if count_entries(message, kind, self._max_entries) > self._max_entries:
            description = (
                f"the message has more than {self._max_entries} entries, which no call needs; "
                f"the server's limit is {self._max_inputs} inputs"
            )
            raise InvalidRequest([FieldViolation("", description)])


def _parse(parse: Callable[[bytes], Any], message: bytes) -> Any:
    try:
        return parse(message)
    except DecodeError as error:
        raise InvalidRequest([FieldViolation("", "the message is not of this method's type")]) from error
