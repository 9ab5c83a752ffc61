"""What a hostile client sends to a port of TLS that asks for certificates. Attacks are as in `attacks.py`."""

import contextlib
import functools
import random
import shutil
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import trustme
from tests.integration.certificates import NAMES, Authority
from tests.load.attacks import PREFACE, SETTINGS, Aim, Attack, connected, read_some, tls_hello
from tests.load.mutation import mutated

__all__ = ["ACCEPTED", "TLS_ATTACKS", "client_files", "client_of"]

ACCEPTED = "ACCEPTED"
"""A handshake that came to its end."""
HELD_S = 1.0
READ_S = 2.0
_HEAD = 5  # bytes before the content of a record: type, version, length
MAX_HELD = 200
"""Connections that one attack holds at one time."""


def client_files(authority: Authority) -> None:
    """Put a certificate beside those of the server, with which clients may call it."""
    leaf = authority.ca.issue_cert("neighbour.example.org")
    (authority.folder / "client-key.pem").write_bytes(leaf.private_key_pem.bytes())
    (authority.folder / "client.pem").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))


def client_of(folder: Path, *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client with that certificate."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(str(folder / "client.pem"), str(folder / "client-key.pem"))
    return context


def _folder(aim: Aim) -> Path:
    assert aim.certificates is not None, "this attack is for a port of TLS"
    return aim.certificates


def broken_hellos(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Hellos with damage, cut off, twice, and records of other types."""
    hello = tls_hello()
    for _ in range(num_cases):
        with connected(aim.port) as connection:
            damaged = mutated(hello, rng, most_changes=rng.choice((1, 3, 30)))
            connection.sendall(
                rng.choice((damaged, hello[: rng.randrange(len(hello))], hello + damaged, rng.randbytes(300)))
            )
            if rng.random() < 0.1:
                read_some(connection)
    return num_cases, Counter()


def slow_hellos(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Many hellos at one time, of which a few bytes come now and then."""
    hello = tls_hello()
    for num_held in _portions(num_cases):
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connected(aim.port)) for _ in range(num_held)]
            for place in range(0, 40, 4):
                for connection in connections:
                    with contextlib.suppress(OSError):
                        connection.sendall(hello[place : place + rng.randrange(1, 5)])
                time.sleep(HELD_S / 10 * num_held / MAX_HELD)
    return num_cases, Counter()


def unfinished_handshakes(aim: Aim, _: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """The server answers a sound hello, which costs it a signature, and then hears nothing."""
    hello = tls_hello()
    for num_held in _portions(num_cases):
        with contextlib.ExitStack() as stack:
            for _connection in range(num_held):
                with contextlib.suppress(OSError):
                    stack.enter_context(connected(aim.port)).sendall(hello)
            time.sleep(HELD_S * num_held / MAX_HELD)
    return num_cases, Counter()


def plain_text(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """HTTP/2 and HTTP/1 without TLS."""
    for _ in range(num_cases):
        with connected(aim.port) as connection:
            connection.sendall(rng.choice((PREFACE + SETTINGS, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")))
            if rng.random() < 0.1:
                read_some(connection)
    return num_cases, Counter()


def many_handshakes(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Whole handshakes, one after another, none of them resumed, and nothing after them."""
    contexts = [
        client_of(_folder(aim), version=version)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    ]
    ends: Counter[str] = Counter()
    for _ in range(num_cases):
        with connected(aim.port) as connection:
            connection.settimeout(READ_S)
            with rng.choice(contexts).wrap_socket(connection, server_hostname="localhost") as wrapped:
                ends[ACCEPTED] += 1
                if rng.random() < 0.5:
                    wrapped.sendall(PREFACE + SETTINGS)
    return num_cases, ends


def renegotiations(aim: Aim, _: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """Handshakes within a connection: renegotiation of TLS 1.2, new keys of TLS 1.3, again and again."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return 0, Counter()
    folder = _folder(aim)
    ends: Counter[str] = Counter()
    for version, wish in (("-tls1_2", b"R\n"), ("-tls1_3", b"K\n")):
        command = [
            openssl,
            "s_client",
            "-connect",
            f"127.0.0.1:{aim.port}",
            version,
            "-alpn",
            "h2",
            "-legacy_renegotiation",
        ]
        command += ["-cert", str(folder / "client.pem"), "-key", str(folder / "client-key.pem")]
        client = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert client.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ends when the server refuses
            for _wish in range(num_cases // 2):
                client.stdin.write(wish)
                client.stdin.flush()  # a command has to come by itself
                time.sleep(0.001)
        try:
            client.communicate(timeout=HELD_S)
            ends["the server closed"] += 1
        except subprocess.TimeoutExpired:
            client.kill()
            client.communicate()
            ends["left open"] += 1
    return num_cases, ends


def damaged_certificates(aim: Aim, rng: random.Random, num_cases: int) -> tuple[int, Counter[str]]:
    """A client's certificate with damage, that of a stranger, and none."""
    sound = client_of(_folder(aim), version=ssl.TLSVersion.TLSv1_2)
    strangers = _strangers(_folder(aim))
    ends: Counter[str] = Counter()
    with connected(aim.port) as connection:
        end = _handshake(connection, sound, lambda flight: flight)
        assert end == ACCEPTED, f"the handshake without damage ended with {end}"
    for _ in range(num_cases):
        with connected(aim.port) as connection:
            connection.settimeout(READ_S)
            if rng.random() < 0.8:
                # In TLS 1.2 it is sent in plain text.
                ends[_handshake(connection, sound, functools.partial(_damaged, rng))] += 1
            else:
                ends[_handshake(connection, rng.choice(strangers), lambda flight: flight)] += 1
    return num_cases, ends


def _damaged(rng: random.Random, flight: bytes) -> bytes:
    """`flight` with damage in its first record, which holds the certificate. Its length is put right."""
    end = _HEAD + int.from_bytes(flight[_HEAD - 2 : _HEAD], "big")
    content = flight[_HEAD:end]
    while (damaged := mutated(content, rng, most_changes=2)) == content:
        pass
    return flight[: _HEAD - 2] + len(damaged).to_bytes(2, "big") + damaged + flight[end:]


def _strangers(folder: Path) -> list[ssl.SSLContext]:
    """Clients with a certificate of another authority, and with none."""
    context = client_of(folder, version=ssl.TLSVersion.TLSv1_2)
    trustme.CA().issue_cert("neighbour.example.org").configure_cert(context)
    bare = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    bare.maximum_version = ssl.TLSVersion.TLSv1_2
    bare.set_alpn_protocols(["h2"])
    return [context, bare]


def _handshake(connection: socket.socket, context: ssl.SSLContext, change: Callable[[bytes], bytes]) -> str:
    """How a handshake ends whose second flight goes through `change`."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=NAMES[0])
    num_flights = 0
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            return error.reason or "SSLError"
        else:
            return ACCEPTED
        if flight := outgoing.read():
            num_flights += 1
            connection.sendall(flight if num_flights == 1 else change(flight))
        try:
            received = connection.recv(1 << 16)
        except TimeoutError:
            return "silence"
        except OSError:
            return "closed"
        if not received:
            return "closed"
        incoming.write(received)


def _portions(num_cases: int) -> Iterator[int]:
    """`num_cases` in portions of as many as are held at one time."""
    while num_cases > 0:
        yield min(num_cases, MAX_HELD)
        num_cases -= MAX_HELD


TLS_ATTACKS: Mapping[str, tuple[Attack, int]] = {
    "broken hellos": (broken_hellos, 300),
    "slow hellos": (slow_hellos, 200),
    "handshakes never finished": (unfinished_handshakes, 200),
    "plain text": (plain_text, 300),
    "many handshakes": (many_handshakes, 200),
    "renegotiation, new keys": (renegotiations, 1_000),
    "damaged client certificates": (damaged_certificates, 200),
}
"""Attacks on a port of TLS, with the number of cases of one round."""
