"""What one client may take of a server's connections: each limit, with a client that wants more.

Limits of calls are in `test_server_floods.py`, of messages in `test_server_large_messages.py`, of texts and inputs in
`test_server_refusals.py`, of pings in `test_server_lifecycle.py`.
"""

import asyncio
import contextlib
import gzip
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import grpc.aio
import h2.events
import psutil
import pytest
from tests.integration.certificates import Authority
from tests.integration.raw_http2 import RawClient
from tests.integration.serving import Served, error_of, serving

from dragoman.client import AsyncClient
from dragoman.server.operations import http_server
from dragoman.v1 import translation_pb2

REQUEST = translation_pb2.TranslateRequest(model="spell", inputs=["12"])
TRANSLATE = "/dragoman.v1.TranslationService/Translate"
MODELS = Path(__file__).parents[1] / "fixtures" / "bundles"
PATIENCE_S = 20.0


@contextlib.contextmanager
def connected(port: int, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that send `first` and nothing else."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
            for _ in range(count)
        ]
        for connection in connections:
            with contextlib.suppress(OSError):  # it was closed at once
                connection.sendall(first)
        yield connections


def seconds_until_closed(connection: socket.socket) -> float:
    """Wait until the server closes the connection."""
    begin_s = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return time.monotonic() - begin_s


async def answers(served: Served) -> bool:
    """Whether a neighbour of the one that wants more is answered."""
    response = await served.translation.Translate(REQUEST, timeout=PATIENCE_S)
    return response.translations[0].text == "one two"


async def test_a_connection_too_many_is_closed_at_once() -> None:
    async with serving(MODELS, "server.max_connections=4") as served:
        assert await answers(served)

        def crowd() -> None:
            with connected(served.server.port, 3) as fit, connected(served.server.port, 5) as beyond:
                for connection in beyond:
                    seconds_until_closed(connection)
                for connection in fit:
                    connection.settimeout(0.01)
                    with contextlib.suppress(TimeoutError):
                        assert connection.recv(1 << 16), "a connection within the limit was closed"

        await asyncio.to_thread(crowd)
        assert await answers(served)


async def test_an_idle_connection_is_closed_and_a_client_notices_nothing() -> None:
    async with serving(MODELS, "server.max_connection_idle_s=0.2") as served:

        def idle() -> None:
            with RawClient(served.server.port, window=65_535) as client:
                stream = client.call(TRANSLATE, REQUEST.SerializeToString())
                client.read_until(h2.events.StreamEnded, stream)
                client.read_until_event(h2.events.ConnectionTerminated)  # GOAWAY

        for _ in range(2):
            assert await answers(served)
            await asyncio.to_thread(idle)


async def test_an_old_connection_is_given_up_and_no_call_fails() -> None:
    async with serving(MODELS, "server.max_connection_age_s=0.2") as served:
        async with AsyncClient(f"127.0.0.1:{served.server.port}", timeout_s=PATIENCE_S) as client:
            end_s = time.monotonic() + 1.0
            while time.monotonic() < end_s:
                assert await client.translate("12", model="spell")

        def grow_old() -> None:
            with RawClient(served.server.port, window=65_535) as client:
                received = b""
                while b"max_age" not in received:  # what GOAWAY says
                    received += client.socket.recv(1 << 16)

        await asyncio.to_thread(grow_old)


HELLO = bytes.fromhex("16030100f8010000f403")
"""The first bytes of a TLS hello, whose rest never comes."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


HALVES = (b"", b"PRI * HTTP/2", PREFACE)
NOT_TLS = (b"", HELLO, PREFACE, b"\xff" * 200, b"GET / HTTP/1.1\r\n\r\n", bytes(70_000))


def stall(port: int, first: bytes) -> float:
    """Let some connections send `first` and nothing else; returns after how many seconds all were closed."""
    with connected(port, 5, first) as stalled:
        return sum(seconds_until_closed(connection) for connection in stalled)


async def stall_beside(neighbour: Served, ports: Sequence[int], kinds: Sequence[bytes]) -> None:
    """Stall with all `kinds` at once, while a neighbour calls."""
    with ThreadPoolExecutor(len(ports) * len(kinds)) as pool:
        loop = asyncio.get_running_loop()
        stalling = [loop.run_in_executor(pool, stall, port, first) for port in ports for first in kinds]
        while not all(each.done() for each in stalling):
            assert await answers(neighbour)
        assert max(await asyncio.gather(*stalling)) < PATIENCE_S / 2


async def test_a_handshake_of_http2_that_does_not_end_is_ended() -> None:
    async with serving(MODELS, "server.handshake_timeout_s=0.3") as served:
        await stall_beside(served, [served.server.port], HALVES)


async def test_what_is_no_handshake_of_tls_leaves_nothing_and_hurts_no_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT_S", 0.3)
    authority = Authority.in_folder(tmp_path)
    overrides = (*authority.settings, "server.handshake_timeout_s=0.3", "security.http_tls=true")
    async with serving(MODELS, *overrides) as served:
        target = f"localhost:{served.server.port}"
        async with grpc.aio.secure_channel(target, authority.client()) as channel:
            neighbour = Served(served.server, channel)
            assert await answers(neighbour)
            num_files = psutil.Process().num_fds()
            await stall_beside(neighbour, [served.server.port, served.server.metrics_port], NOT_TLS)
            async with asyncio.timeout(PATIENCE_S):
                while psutil.Process().num_fds() > num_files:
                    await asyncio.sleep(0.01)


async def test_metadata_beyond_the_limit_end_the_call() -> None:
    async with serving(MODELS, "server.max_metadata_bytes=4096") as served:
        translate = served.translation.Translate
        assert await translate(REQUEST, metadata=(("x-many", "m" * 3000),))
        for too_much in ((("x-one", "m" * 5000),), tuple((f"x-{n}", "m") for n in range(120))):
            error = await error_of(translate(REQUEST, metadata=too_much))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await answers(served)


async def test_a_compressed_bomb_is_refused_by_what_it_holds() -> None:
    async with serving(MODELS, "server.max_message_bytes=65536") as served:
        bomb = gzip.compress(bytes(12 * 1024 * 1024))
        assert len(bomb) < 16384  # a frame

        def explode() -> None:
            with RawClient(served.server.port, window=65_535) as client:
                for _ in range(20):
                    stream = client.call(TRANSLATE, bomb, encoding="gzip")
                    client.read_until((h2.events.StreamEnded, h2.events.StreamReset), stream)

        await asyncio.to_thread(explode)
        assert await answers(served)
        compressed = served.translation.Translate(REQUEST, compression=grpc.Compression.Gzip)
        assert (await compressed).translations[0].text == "one two"
        codes = {code for _, _, code in served.codes()}
        assert codes <= {"OK", "CANCELLED", "RESOURCE_EXHAUSTED"}
