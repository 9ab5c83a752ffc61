"""The server's certificate, tried before it is used.

A handshake in memory is the trial: it fails where the key is another one, a part of the chain is missing or the
certificate is not for servers, and it gives the time at which the certificate ends.
"""

import datetime as dt
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from dragoman.server.errors import CredentialsError
from dragoman.server.security.files import read_file

__all__ = ["Certificates"]

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which the module `ssl` does not name: the time is looked at here."""
_MAX_FLIGHTS = 10
"""A handshake takes two or three."""


@dataclass(frozen=True)
class Certificates:
    """The certificates that the server shows to its clients and demands of them.

    Attributes:
        chain: the certificate and those between it and the root, in PEM.
        key: its private key, in PEM.
        client_ca: the authorities of clients' certificates, in PEM; None: clients show no certificate.
        expires_s: when the certificate ends, as seconds since the epoch.
        context: for TLS in this process without gRPC; it asks for no client's certificate.
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    client_ca: bytes | None = field(repr=False)
    expires_s: float
    context: ssl.SSLContext = field(repr=False)

    @classmethod
    def read(cls, certificate: Path, key: Path, client_ca: Path | None) -> Self:
        """Read and try the files.

        Raises:
            CredentialsError: a file cannot be read or is none of its kind, the key is not the certificate's, or the
                certificate has expired.
        """
        chain, key_bytes = read_file(certificate, "certificate"), read_file(key, "key")
        authorities = read_file(client_ca, "certificates of clients' authorities") if client_ca else None
        if authorities is not None:
            _trusting(authorities, f"the file of clients' authorities {client_ca}")
        context = _context(certificate, key)
        client = _trusting(chain, f"certificate {certificate}")
        try:
            expires_s = _try(context, client)
        except ssl.SSLError as error:
            raise CredentialsError(f"certificate {certificate} cannot be used: {_reason(error)}") from error
        if expires_s <= time.time():
            ended = dt.datetime.fromtimestamp(expires_s, dt.UTC)
            raise CredentialsError(f"certificate {certificate} expired at {ended:%Y-%m-%d %H:%M:%S} UTC")
        return cls(chain, key_bytes, authorities, expires_s, context)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def refuse() -> str:
        raise CredentialsError(f"key {key} has a password: the server has nobody to ask for it")

    try:
        context.load_cert_chain(certificate, key, refuse)
    except OSError as error:  # ssl.SSLError is one
        pair = f"certificate {certificate} with key {key}"
        raise CredentialsError(f"{pair} cannot be used: {_reason(error)}") from error
    return context


def _trusting(certificates: bytes, source: str) -> ssl.SSLContext:
    """A client that believes each of `certificates` by itself, whatever the time and the name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    try:
        context.load_verify_locations(cadata=certificates.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        reason = _reason(error) if isinstance(error, ssl.SSLError) else "it is not text"
        raise CredentialsError(f"{source} is not in PEM: {reason}") from error
    return context


def _try(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> float:
    """Returns when the server's certificate ends.

    Raises:
        ssl.SSLError: the handshake fails.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server)
    for _ in range(_MAX_FLIGHTS):
        is_over = [_step(side) for side in (client, server)]
        if all(is_over):
            break
    shown = client.getpeercert()
    assert shown is not None
    return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror or str(error)
