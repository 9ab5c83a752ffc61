"""The credentials by which a client believes a server, and those that it shows: TLS and bearer tokens.

A token is a secret. No error, no `repr` and no log line has it. It is not sent in plain text to another machine, unless
that is asked for.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dragoman.client.proxies import is_loopback
from dragoman.common.errors import UsageError

if TYPE_CHECKING:
    import grpc

__all__ = ["Credentials", "Protection", "TokenSource"]

_VARIABLES = {
    "tls": "DRAGOMAN_TLS",
    "tls_ca": "DRAGOMAN_TLS_CA",
    "tls_cert": "DRAGOMAN_TLS_CERT",
    "tls_key": "DRAGOMAN_TLS_KEY",
    "tls_server_name": "DRAGOMAN_TLS_SERVER_NAME",
    "token": "DRAGOMAN_TOKEN",
    "token_file": "DRAGOMAN_TOKEN_FILE",
    "allow_plaintext_token": "DRAGOMAN_ALLOW_PLAINTEXT_TOKEN",
}
_FLAGS = frozenset({"tls", "allow_plaintext_token"})
_OF_TLS = frozenset({"tls_ca", "tls_cert", "tls_key", "tls_server_name"})
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """How a channel is protected.

    Attributes:
        tls: Use TLS, and believe the public authorities that gRPC knows. Any other of `tls_...` switches TLS on too.
        tls_ca: PEM file with the authorities to believe instead.
        tls_cert: PEM file with this client's certificate, for a server that asks for one.
        tls_key: PEM file with the certificate's private key.
        tls_server_name: The name that the server's certificate has to have, if it is not the target's.
        token: A bearer token.
        token_file: A file with the token, which is read again when it changes.
        allow_plaintext_token: Send the token without TLS to other machines too. Who listens then has it.
    """

    tls: bool = False
    tls_ca: str | Path | None = None
    tls_cert: str | Path | None = None
    tls_key: str | Path | None = None
    tls_server_name: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | Path | None = None
    allow_plaintext_token: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: a certificate without its key, or a token and a file with one.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("a client's certificate and its key are needed together (--tls-cert, --tls-key)")
        if self.token is not None and self.token_file is not None:
            raise UsageError(
                f"a token is given, and the file {self.token_file} with a token: give one of them"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **given: Any) -> Self:
        """The credentials that variables such as `DRAGOMAN_TLS_CA` name; what is `given` and not None goes before.

        With `tls=False` no variable switches TLS on.

        Raises:
            UsageError: a variable has no sense, or what is found does not fit together.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        hidden = {"token", "token_file"} if chosen.keys() & {"token", "token_file"} else set()
        hidden |= _OF_TLS if chosen.get("tls") is False else set()
        for name, variable in _VARIABLES.items():
            text = environment.get(variable, "")
            if text and name not in hidden:
                chosen.setdefault(name, _flag(variable, text) if name in _FLAGS else text)
        return cls(**chosen)

    @property
    def uses_tls(self) -> bool:
        """Whether connections are over TLS."""
        return self.tls or any((self.tls_ca, self.tls_cert, self.tls_server_name))

    def channel_credentials(self) -> "grpc.ChannelCredentials | None":
        """Returns the credentials of gRPC's secure channel; None for plain text.

        Raises:
            UsageError: a file cannot be read.
        """
        if not self.uses_tls:
            return None
        import grpc  # noqa: PLC0415  a tenth of a second, which `dragoman --help` does not need

        return grpc.ssl_channel_credentials(
            _content(self.tls_ca, "--tls-ca"),
            _content(self.tls_key, "--tls-key"),
            _content(self.tls_cert, "--tls-cert"),
        )

    def token_for(self, target: str) -> "TokenSource | None":
        """The token for calls to `target`; None where there is none.

        Raises:
            UsageError: the token would go to another machine in plain text, or cannot be read.
        """
        if self.token is None and self.token_file is None:
            return None
        if not (self.uses_tls or self.allow_plaintext_token or is_loopback(target)):
            raise UsageError(
                f"a token would go to {target} in plain text, where others can read it: use TLS (--tls, --tls-ca), "
                "or allow it (--allow-plaintext-token)"
            )
        return TokenSource(self.token, None if self.token_file is None else Path(self.token_file))


@dataclass(frozen=True)
class Protection:
    """Credentials, as a channel to one target takes them.

    Attributes:
        channel: for a secure channel; None: plain text.
        arguments: of the channel, beside those of its settings.
        token: goes with each call, if there is one.
    """

    channel: "grpc.ChannelCredentials | None"
    arguments: list[tuple[str, int | str]]
    token: "TokenSource | None"

    @classmethod
    def of(cls, credentials: "Credentials | grpc.ChannelCredentials | None", target: str) -> Self:
        """Returns the protection by `credentials`; None: by those of the environment.

        Raises:
            UsageError: the token would go to another machine in plain text, or a file cannot be read.
        """
        if credentials is None:
            credentials = Credentials.from_environment()
        if not isinstance(credentials, Credentials):
            return cls(credentials, [], None)
        name = credentials.tls_server_name
        arguments: list[tuple[str, int | str]] = [("grpc.ssl_target_name_override", name)] if name else []
        return cls(credentials.channel_credentials(), arguments, credentials.token_for(target))


class TokenSource:
    """A bearer token, as metadata of calls."""

    def __init__(self, token: str | None, path: Path | None) -> None:
        """Use `token`, or what the file `path` holds at each call.

        Raises:
            UsageError: the file cannot be read, or what it holds is no token.
        """
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._metadata = _metadata(token or "", "the token") if path is None else self._read(path)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata of a call. While the token's file cannot be read, the last token stays in use."""
        if self._path is not None:
            try:
                status = self._path.stat()
                if (status.st_mtime_ns, status.st_ino) != self._seen:
                    self._metadata = self._read(self._path)
            except (OSError, UsageError):
                pass
        return self._metadata

    def __repr__(self) -> str:
        """Where the token is from, and not the token."""
        return f"TokenSource({str(self._path)!r})" if self._path else "TokenSource(...)"

    def _read(self, path: Path) -> tuple[tuple[str, str], ...]:
        try:
            status = path.stat()
            text = path.read_text(encoding="ascii", errors="replace").strip()
        except OSError as error:
            raise UsageError(f"cannot read the token file {path}: {error.strerror}") from error
        self._seen = status.st_mtime_ns, status.st_ino
        return _metadata(text, f"what the file {path} holds")


def _flag(variable: str, text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise UsageError(f"{variable}={text!r}: it is one of {', '.join(sorted(_TRUE | _FALSE))}")
    return text.lower() in _TRUE


def _metadata(token: str, source: str) -> tuple[tuple[str, str], ...]:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{source} is no token: a token is one word of ASCII")
    return (("authorization", f"Bearer {token}"),)


def _content(path: str | Path | None, option: str) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path} ({option}): {error.strerror}") from error
