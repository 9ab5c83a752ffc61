"""Log events of the host, the lanes and the further fronts, on their way to the server's log.

All write to one socket, an event a packet. The server reads it. An event that the socket has no room for is counted,
and the next one says how many were lost: no lane and no front ever waits for a log.
"""

import logging
import socket
from typing import Any, NoReturn

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

__all__ = ["LogEvent", "relay", "send_logs_to"]

_MAX_PACKET_BYTES = 1 << 16
_MAX_VALUE_CHARACTERS = 1 << 15
"""The most that is kept of one value. A traceback of many frames is longer, and its end says what happened."""

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode


class LogEvent(msgspec.Struct, frozen=True, array_like=True):
    """One event.

    Attributes:
        level: of structlog: "info", "warning", "error".
        fields: with "event", its name.
        num_lost: events that were lost before this one.
    """

    level: str
    fields: dict[str, Any]
    num_lost: int = 0


_decode = msgspec.msgpack.Decoder(LogEvent).decode


class _Sender:
    """The last of structlog's processors in a process without a log of its own."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._num_lost = 0

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> NoReturn:  # noqa: ARG002
        fields = {name: _bounded(value) for name, value in event.items()}
        try:
            self._socket.send(_encode(LogEvent(method, fields, self._num_lost)))
        except (OSError, msgspec.MsgspecError):  # it is full, or nobody reads it any more
            self._num_lost += 1
        else:
            self._num_lost = 0
        raise structlog.DropEvent


def _bounded(value: object) -> object:
    return value[-_MAX_VALUE_CHARACTERS:] if isinstance(value, str) else value


def send_logs_to(sock: socket.socket, level: int = logging.DEBUG) -> None:
    """Send what this process logs to whoever reads the other end of `sock`, from `level` on."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            _Sender(sock),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )


def relay(sock: socket.socket, **sender: Any) -> bool:
    """Log what has come on `sock`, which does not block; returns False when no process will write to it any more.

    `sender` are fields that say which process it comes from.
    """
    log = structlog.get_logger(__name__)
    while True:
        try:
            packet = sock.recv(_MAX_PACKET_BYTES * 2)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if not packet:
            return False
        event = _decode(packet)
        if event.num_lost:
            log.warning("log_lines_dropped", **sender, count=event.num_lost)
        getattr(log, event.level)(event.fields.pop("event"), **sender, **event.fields)
