"""A gRPC client at the level of HTTP/2 frames, to do what no gRPC library does."""

import socket
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.settings


class RawClient:
    """One connection whose flow-control window the test chooses."""

    def __init__(self, port: int, *, window: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout=20)
        config = h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False)
        self.http2 = h2.connection.H2Connection(config)
        self.http2.initiate_connection()
        self.http2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.send()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self) -> None:
        self.socket.sendall(self.http2.data_to_send())

    def call(
        self,
        path: str | bytes,
        message: bytes | None,
        *,
        timeout: str | None = None,
        reset: bool = False,
        encoding: str | None = None,
    ) -> int:
        """Send a unary request and its end, or with `reset` at once that nobody waits; returns the stream's number.

        `timeout` is in gRPC's own form, such as "100m". A `message` of None: the call ends without one.
        A message with an `encoding`, such as "gzip", is compressed already.
        """
        stream: int = self.http2.get_next_available_stream_id()
        headers: list[tuple[str, str | bytes]] = [
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
            ("content-type", "application/grpc"), ("te", "trailers"),
        ]  # fmt: skip
        if timeout is not None:
            headers.append(("grpc-timeout", timeout))
        if encoding is not None:
            headers.append(("grpc-encoding", encoding))
        self.http2.send_headers(stream, headers, end_stream=message is None)
        if message is not None:
            frame = bytes([encoding is not None]) + len(message).to_bytes(4, "big") + message
            self.http2.send_data(stream, frame, end_stream=not reset)
        if reset:
            self.http2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self.send()
        return stream

    def read_to_end(self) -> None:
        """Read until the server closes the connection."""
        while self.socket.recv(1 << 16):
            pass

    def read_until_event(self, *event_types: type) -> None:
        """Read until an event of one of these types comes."""
        while data := self.socket.recv(1 << 16):
            events = self.http2.receive_data(data)
            self.send()
            if any(isinstance(event, event_types) for event in events):
                return
        raise AssertionError("the server closed the connection")

    def read_until(self, event_type: type | tuple[type, ...], stream: int) -> None:
        """Read until an event of this type comes on `stream`."""
        while data := self.socket.recv(1 << 16):
            events = self.http2.receive_data(data)
            self.send()
            if any(isinstance(event, event_type) and event.stream_id == stream for event in events):  # type: ignore[attr-defined]
                return
        raise AssertionError(f"the server closed the connection without {event_type}")
