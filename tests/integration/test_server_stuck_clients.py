"""How the server ends while clients do not read what it sends to them."""

import contextlib
import signal
import socket
import time
from collections.abc import Callable

import pytest
from tests.integration.child_server import ports, running
from tests.integration.raw_http2 import RawClient

from dragoman.v1 import decoding_pb2, translation_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\6\0\0\0\0\0" + b"A" * 8
WINDOW = 2**31 - 1
DRAIN_S = 0.5


def send_pings(port: int) -> contextlib.AbstractContextManager[object]:
    """Send pings until the server takes no more of them, and read no answer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.settimeout(1.0)
    client.sendall(PREFACE + SETTINGS)
    with contextlib.suppress(OSError):  # the server reads no more, or has ended the connection
        for _ in range(150):
            client.sendall(PING * 1000)
    return client


def ask_for_answers(port: int) -> contextlib.AbstractContextManager[object]:
    """Ask for more than the sockets' buffers hold, and read no answer."""
    client = RawClient(port, window=WINDOW)
    client.http2.increment_flow_control_window(WINDOW - 65_535)
    options = decoding_pb2.DecodingOptions(num_alternatives=20, min_tokens=40)
    request = translation_pb2.TranslateRequest(model="spell", inputs=["12"] * 128, options=options)
    for _ in range(30):
        client.call("/dragoman.v1.TranslationService/Translate", request.SerializeToString())
    time.sleep(1)
    return client


@pytest.mark.parametrize("begin", [send_pings, ask_for_answers])
def test_a_client_that_does_not_read_its_socket_does_not_break_the_end(
    begin: Callable[[int], contextlib.AbstractContextManager[object]],
) -> None:
    """gRPC's core cannot close such a connection, so gRPC itself does not end in time."""
    with running(*ports(), "--set", f"server.drain_timeout_s={DRAIN_S}") as server:
        with begin(server.wait_for("serving")["port"]):
            server.process.send_signal(signal.SIGTERM)
            assert server.wait_for_end() == 0, server.events
        assert "stopped" in [event["event"] for event in server.events]
