"""What a hostile client sends. Each attack returns how many cases it made, and the statuses that calls of it got."""

import contextlib
import gzip
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from tests.integration.raw_http2 import RawClient
from tests.load.cases import TRANSLATE
from tests.load.mutation import mutated

from dragoman.v1 import translation_pb2

__all__ = [
    "ATTACKS",
    "DRAGOMAN",
    "PRECISE",
    "Aim",
    "Attack",
    "connected",
    "read_some",
    "tls_hello",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\6\0\0\0\0\0" + b"A" * 8
MESSAGE = translation_pb2.TranslateRequest(model="spell", inputs=["12"]).SerializeToString()
PRECISE = frozenset({"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"})
"""What calls may end with that are not cancelled and have no deadline."""
READ_S = 0.05


@dataclass(frozen=True)
class Aim:
    """What is attacked: a server on this machine, and a call that it would answer.

    Attributes:
        certificates: folder of the authority and of a client's certificate; None: the port is in plain text.
    """

    port: int
    path: str
    message: bytes
    certificates: Path | None = None


DRAGOMAN = Aim(0, TRANSLATE, MESSAGE)
"""Without a port."""
Attack = Callable[[Aim, random.Random, int], tuple[int, Counter[str]]]


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A connection. What the server does to it is no error."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(READ_S)
        # The server may have closed the connection: that is an answer.
        with contextlib.suppress(OSError, h2.exceptions.H2Error):
            yield connection


def read_some(connection: socket.socket) -> None:
    """Take what comes within a moment."""
    with contextlib.suppress(OSError, h2.exceptions.H2Error):
        connection.recv(1 << 16)


def random_bytes(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    for _ in range(num_cases):
        with connected(aim.port) as connection:
            if rng.random() < 0.5:
                connection.sendall(PREFACE + SETTINGS)
            connection.sendall(rng.randbytes(rng.randrange(1, 2000)))
            if rng.random() < 0.1:
                read_some(connection)
    return num_cases, Counter()


def tls_hellos(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """A handshake's beginning, where the server speaks no TLS, or with damage."""
    hello = tls_hello()
    for _ in range(num_cases):
        with connected(aim.port) as connection:
            connection.sendall(hello if rng.random() < 0.5 else mutated(hello, rng))
            if rng.random() < 0.1:
                read_some(connection)
    return num_cases, Counter()


def tls_hello() -> bytes:
    """What a client's handshake begins with."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


def http1(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    for _ in range(num_cases):
        with connected(aim.port) as connection:
            line = rng.choice((b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.0\r\n", b"CONNECT a:1 HTTP/1.1\r\n"))
            connection.sendall(line + b"Host: a\r\n" + b"X: " + b"y" * rng.randrange(10_000) + b"\r\n\r\n")
            if rng.random() < 0.1:
                read_some(connection)
    return num_cases, Counter()


def random_frames(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Frames of HTTP/2 of all types, in any order, with any flags, on any stream."""
    for _ in range(num_cases):
        with connected(aim.port) as connection:
            frames = PREFACE + SETTINGS
            for _ in range(rng.randrange(1, 12)):
                body = rng.randbytes(rng.choice((0, 1, 4, 5, 6, 8, 40, 300)))
                length = len(body) if rng.random() < 0.9 else rng.randrange(1 << 24)
                stream = rng.choice((0, 1, 1, 3, 5, rng.randrange(1 << 32)))
                head = length.to_bytes(3, "big") + bytes([rng.randrange(12), rng.randrange(256)])
                frames += head + stream.to_bytes(4, "big") + body
            connection.sendall(frames)
            if rng.random() < 0.1:
                read_some(connection)
    return num_cases, Counter()


def stream_flood(aim: Aim, _: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Open streams without a look at the server's limit."""
    return num_cases, _open_streams(aim, num_cases, reset=False)


def rapid_reset(aim: Aim, _: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Open streams and reset each at once (CVE-2023-44487)."""
    return num_cases, _open_streams(aim, num_cases, reset=True)


def _open_streams(aim: Aim, num_streams: int, *, reset: bool) -> Counter[str]:
    ends: Counter[str] = Counter()
    with RawClient(aim.port, window=65_535) as client, contextlib.suppress(OSError, h2.exceptions.H2Error):
        client.read_until_event(h2.events.RemoteSettingsChanged)
        client.http2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 2**20
        client.http2.remote_settings.acknowledge()
        for _ in range(num_streams):
            client.call(aim.path, aim.message, reset=reset)
        end_s = time.monotonic() + 20
        while not reset and ends.total() < num_streams and time.monotonic() < end_s:
            for event in client.http2.receive_data(client.socket.recv(1 << 16)):
                if isinstance(event, h2.events.StreamReset):
                    ends[h2.errors.ErrorCodes(event.error_code or 0).name] += 1
                elif isinstance(event, h2.events.TrailersReceived):
                    ends[_status(event)] += 1
            client.send()
    return ends


def _status(event: Any) -> str:
    code = int(dict(event.headers)["grpc-status"])
    return next(each.name for each in grpc.StatusCode if each.value[0] == code)


def pings(aim: Aim, _: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    with connected(aim.port) as connection:
        connection.sendall(PREFACE + SETTINGS)
        for _sent in range(num_cases // 100):
            connection.sendall(PING * 100)
    return num_cases, Counter()


def settings_flood(aim: Aim, _: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    with connected(aim.port) as connection:
        connection.sendall(PREFACE)
        for _sent in range(num_cases // 100):
            connection.sendall(SETTINGS * 100)
    return num_cases, Counter()


def continuations(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Headers that never end (CVE-2024-27316), and lists of headers that unpack to a thousand times their size."""
    with connected(aim.port) as connection:
        connection.sendall(PREFACE + SETTINGS + b"\0\0\1\1\0\0\0\0\1\x83")  # HEADERS without END_HEADERS
        part = b"\x00\x03abc\x7f\x81\x0a" + b"d" * 264
        frame = len(part).to_bytes(3, "big") + b"\x09\0\0\0\0\1" + part
        for _ in range(num_cases // 2):
            connection.sendall(frame)
    with connected(aim.port) as connection:
        connection.sendall(PREFACE + SETTINGS)
        value = b"e" * 3000
        entry = b"\x40\x03bom\x7f" + _hpack_length(len(value)) + value
        for number in range(num_cases // 2):
            block = (entry if number == 0 else b"") + b"\xbe" * 4000  # an index of the table for each byte
            stream = (2 * number + 1).to_bytes(4, "big")
            connection.sendall(len(block).to_bytes(3, "big") + b"\x01\x04" + stream + block)
    return num_cases, Counter()


def _hpack_length(length: int) -> bytes:
    """The rest of a length that filled its 7 bits (RFC 7541, 5.1)."""
    rest, out = length - 127, bytearray()
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest])


def zero_windows(aim: Aim, _: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Calls whose answers may never be sent; their clients hold on to them for a moment."""
    with contextlib.ExitStack() as stack:
        for _client in range(num_cases // 20 or 1):
            client = stack.enter_context(RawClient(aim.port, window=0))
            with contextlib.suppress(OSError, h2.exceptions.H2Error):
                for _call in range(20):
                    client.call(aim.path, aim.message)
        time.sleep(0.2)
    return num_cases, Counter()


def bombs(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Small messages that unpack to large ones: beyond the limit of a message, or two million empty entries."""
    entries = gzip.compress(aim.message + b"\x1a\x00" * 2_000_000)
    zeros = gzip.compress(bytes(12 << 20))
    statuses: Counter[str] = Counter()
    for _ in range(num_cases):
        with (
            RawClient(aim.port, window=65_535) as client,
            contextlib.suppress(OSError, AssertionError, h2.exceptions.H2Error),
        ):
            client.call(aim.path, rng.choice((entries, zeros)), encoding="gzip")
            statuses[_end_of(client)] += 1
    return num_cases, statuses


def _end_of(client: RawClient) -> str:
    while data := client.socket.recv(1 << 16):
        for event in client.http2.receive_data(data):
            if isinstance(event, h2.events.TrailersReceived):
                return _status(event)
            if isinstance(event, h2.events.ResponseReceived) and "grpc-status" in dict[Any, Any](
                event.headers
            ):
                return _status(event)
            if isinstance(event, h2.events.StreamReset):
                return h2.errors.ErrorCodes(event.error_code or 0).name
        client.send()
    return "closed"


def odd_headers(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Paths, timeouts and encodings that no library sends."""
    paths: tuple[bytes, ...] = (
        b"/",
        b"/a",
        b"/" + b"x" * 5000,
        b"/\xff\xfe/\xff",
        aim.path.encode() + b"/",
        b"//",
    )
    for _ in range(num_cases):
        with (
            RawClient(aim.port, window=65_535) as client,
            contextlib.suppress(OSError, h2.exceptions.H2Error),
        ):
            timeout = rng.choice((None, "0n", "99999999H", "-1S", "x", "1" * 30 + "S"))
            encoding = rng.choice((None, "gzip", "deflate", "br", "identity"))
            path = rng.choice((*paths, aim.path.encode()))
            client.call(path, mutated(aim.message, rng), timeout=timeout, encoding=encoding)
            if rng.random() < 0.1:
                read_some(client.socket)
    return num_cases, Counter()


def mutated_messages(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Damaged requests over a sound connection: each must get a precise status."""
    statuses: Counter[str] = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{aim.port}") as channel:
        method: Any = channel.unary_unary(aim.path)
        running = []
        for _ in range(num_cases):
            running.append(method.future(mutated(aim.message, rng), timeout=20))
            if len(running) == 32:
                statuses.update(each.code().name for each in running)
                running = []
        statuses.update(each.code().name for each in running)
    return num_cases, statuses


ATTACKS: Mapping[str, tuple[Attack, int]] = {
    "random bytes": (random_bytes, 400),
    "TLS hellos": (tls_hellos, 300),
    "HTTP/1": (http1, 200),
    "random frames": (random_frames, 600),
    "streams beyond the limit": (stream_flood, 2_000),
    "rapid reset": (rapid_reset, 3_000),
    "pings": (pings, 20_000),
    "settings": (settings_flood, 10_000),
    "headers without end, header bombs": (continuations, 2_000),
    "windows of zero": (zero_windows, 400),
    "compressed bombs": (bombs, 20),
    "odd headers": (odd_headers, 300),
    "damaged messages": (mutated_messages, 2_000),
}
"""Attacks, with the number of cases of one round."""
