"""A WSGI server for scrapes and probes that no client can hold up: waitress, with a deadline for every request.

One thread reads and writes all connections without waiting for any of them. A few others compute the answers to
requests that have come whole. So a client that sends slowly, or never, holds a connection and nothing else, and that
only for `REQUEST_TIMEOUT_S`; waitress itself asks only for a byte now and then.
"""

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

__all__ = ["MAX_CONNECTIONS", "HttpServer"]

REQUEST_TIMEOUT_S = 5.0
"""Within this time a request has to come whole, and its answer has to be read."""
MAX_CONNECTIONS = 128
"""The most connections. With one more, the one that has waited longest for its request is closed."""
NUM_THREADS = 4
"""Threads that compute answers."""
ACCEPT_PAUSE_S = 0.1
"""How long no connection is accepted when the process may open no more files and no connection can be closed."""
CLOSE_LIMIT_S = 1.0
"""How long `close` waits for answers that are being computed."""
TLS_RECORD_BYTES = 16 * 1024
"""The longest record. With less asked for, a rest would wait in memory, where no poll sees it."""
SEND_BYTES = 1024
"""From so many bytes on the thread that computed an answer sends it. Else the thread of all connections does, and under
load a page of metrics waits for one more turn of the interpreter."""
MAX_HEADER_BYTES = 16 * 1024
MAX_BODY_BYTES = 16 * 1024

# It warns of connections and requests that wait, which is no event here.
logging.getLogger("waitress").setLevel(logging.ERROR)
logging.getLogger("waitress.queue").setLevel(logging.ERROR)


class HttpServer:
    """Serves a WSGI application in daemon threads, from its making until `close`.

    Attributes:
        port: the bound one, also when 0 was asked for.
    """

    def __init__(
        self,
        host: str,
        port: int,
        app: Any,
        tls_context: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        """Bind and start serving. Each connection is over TLS for which `tls_context` gives a context.

        Raises:
            OSError: the port is in use, or the host is none of this machine's.
        """
        family, *rest = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        self._sockets: dict[int, Any] = {}
        self._dispatcher = ThreadedTaskDispatcher()
        try:
            self._server = _Server(
                tls_context,
                app,
                map=self._sockets,
                dispatcher=self._dispatcher,
                adj=_settings(),
                sockinfo=(family, rest[0], rest[1], rest[3]),
            )
        except OSError:
            wasyncore.close_all(self._sockets)
            raise
        self.port = int(self._server.effective_port)
        self._dispatcher.set_thread_count(NUM_THREADS)
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and close every connection, within `CLOSE_LIMIT_S`.

        A thread that still computes an answer then goes on alone: it is a daemon.
        """
        end_s = time.monotonic() + CLOSE_LIMIT_S
        # In the thread that reads and writes them: it ends when it has no socket any more.
        with contextlib.suppress(OSError):  # the thread was awake, and has closed what would have woken it
            self._server.trigger.pull_trigger(lambda: wasyncore.close_all(self._sockets))
        self._thread.join(CLOSE_LIMIT_S)
        self._dispatcher.shutdown(timeout=max(0.0, end_s - time.monotonic()))


def _settings() -> Adjustments:
    settings = Adjustments(
        ident=None,
        max_request_header_size=MAX_HEADER_BYTES,
        max_request_body_size=MAX_BODY_BYTES,
        # Connections are counted and timed out below.
        connection_limit=2**31,
        cleanup_interval=1,
        asyncore_loop_timeout=1,
        asyncore_use_poll=True,
        log_socket_errors=False,
    )
    settings.send_bytes = SEND_BYTES  # as an argument it is deprecated, and nothing takes its place
    return settings


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection that knows since when its client owes something."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.owes_since_s = time.monotonic()
        super().__init__(*arguments, **keywords)

    def service(self) -> None:
        """Answer a request. Then the client has to read the answer, or to send the next request."""
        super().service()
        self.owes_since_s = time.monotonic()


class _TlsChannel(_Channel):
    """A connection over TLS. Reading does the handshake too, whenever something has come."""

    def handle_read(self) -> None:
        """Read what has come, if it makes a whole record."""
        try:
            data = self.recv(TLS_RECORD_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:  # also a client that does not speak TLS
            self.handle_close()
            return
        if data:
            self.received(data)
        else:
            self.connected = False

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Send a part of `data`; returns how many bytes, 0 where the client does not read now."""
        try:
            return int(super().send(data, do_close=do_close))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0


class _Server(TcpWSGIServer):  # type: ignore[misc]
    channel_class = _Channel

    def __init__(
        self, tls_context: Callable[[], ssl.SSLContext | None], *arguments: Any, **keywords: Any
    ) -> None:
        self._tls_context = tls_context
        self._accepts_from_s = 0.0
        super().__init__(*arguments, **keywords)

    def readable(self) -> bool:
        """Whether connections are accepted now."""
        return bool(super().readable()) and time.monotonic() >= self._accepts_from_s

    def accept(self) -> Any:
        """Accept a connection; None where there is none, or no file is left for one."""
        if len(self.active_channels) >= MAX_CONNECTIONS:
            self._close_one()
        try:
            return self._over_tls(super().accept())
        except OSError:
            if not self._close_one():
                self._accepts_from_s = time.monotonic() + ACCEPT_PAUSE_S
            return None

    def maintenance(self, now: float) -> None:  # noqa: ARG002  waitress's wall clock may jump
        """Close connections whose time is over; waitress calls this every `cleanup_interval` seconds."""
        begin_s = time.monotonic() - REQUEST_TIMEOUT_S
        for channel in self._waiting():
            if channel.owes_since_s < begin_s:
                channel.will_close = True

    def _over_tls(self, accepted: Any) -> Any:
        context = self._tls_context()
        self.channel_class = _Channel if context is None else _TlsChannel
        if context is None or accepted is None:
            return accepted
        connection, address = accepted
        try:
            wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError:  # the client has gone
            connection.close()
            return None
        return wrapped, address

    def _close_one(self) -> bool:
        """Close the connection that has waited longest for its client; returns whether there is one."""
        waiting = self._waiting()
        if waiting:
            min(waiting, key=lambda channel: channel.owes_since_s).handle_close()
        return bool(waiting)

    def _waiting(self) -> list[_Channel]:
        """Connections that no thread computes an answer for."""
        return [channel for channel in list(self.active_channels.values()) if not channel.requests]
