"""All credentials of a server, as its files have them at this moment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar

from dragoman.server.errors import CredentialsError
from dragoman.server.security.certificates import Certificates
from dragoman.server.security.files import Signature, loose_permissions, signature_of
from dragoman.server.security.tokens import TokenTable
from dragoman.server.settings.security import SecuritySettings

__all__ = ["CREDENTIAL_KINDS", "CredentialKind", "Credentials", "Reload"]

CredentialKind: TypeAlias = Literal["certificate", "tokens"]
CREDENTIAL_KINDS: tuple[CredentialKind, ...] = ("certificate", "tokens")

_Value = TypeVar("_Value", Certificates, TokenTable)


@dataclass(frozen=True, slots=True)
class Reload:
    """The event that files have changed.

    Attributes:
        kind: what they hold.
        error: why their new content is not used, and the old one still is; None: it is used.
    """

    kind: CredentialKind
    error: CredentialsError | None = None


class _Source(Generic[_Value]):
    """Files, and what was read of them last.

    Attributes:
        value: read by any thread.
    """

    def __init__(self, kind: CredentialKind, paths: Sequence[Path], read: Callable[[], _Value]) -> None:
        self.kind = kind
        self._paths = tuple(paths)
        self._read: Callable[[], _Value] = read
        self._used = self._seen = signature_of(paths)
        self.value: _Value = read()

    def reload(self, *, at_once: bool) -> Reload | None:
        """Read the files if they have changed and did not change since the last call, or `at_once`."""
        signature = signature_of(self._paths)
        if not at_once and not self._is_settled(signature):
            return None
        self._used = self._seen = signature
        try:
            self.value = self._read()
        except CredentialsError as error:
            return Reload(self.kind, error)
        return Reload(self.kind)

    def _is_settled(self, signature: Signature) -> bool:
        """Whether files are new, and whole: a certificate and its key are seldom written in one moment."""
        is_settled = signature == self._seen
        self._seen = signature
        return is_settled and signature != self._used


class Credentials:
    """The credentials that the settings name: the server's certificate, the tokens that it accepts."""

    def __init__(self, settings: SecuritySettings) -> None:
        """Read all files.

        Raises:
            CredentialsError: one of them is not right.
        """
        self._settings = settings
        certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
        self._certificates: _Source[Certificates] | None = None
        if certificate is not None and key is not None:
            paths = [certificate, key, *([client_ca] if client_ca else [])]
            self._certificates = _Source(
                "certificate", paths, lambda: Certificates.read(certificate, key, client_ca)
            )
        self._tokens: _Source[TokenTable] | None = None
        if (tokens := settings.tokens_file) is not None:
            self._tokens = _Source("tokens", [tokens], lambda: TokenTable.read(tokens))

    @property
    def certificates(self) -> Certificates | None:
        """The certificates for TLS; None: connections are in plain text."""
        return None if self._certificates is None else self._certificates.value

    @property
    def tokens(self) -> TokenTable | None:
        """The tokens that are accepted; None: no token is asked for."""
        return None if self._tokens is None else self._tokens.value

    def loose_permissions(self) -> list[str]:
        """Returns the faults of the files' permissions."""
        settings = self._settings
        secret = [path for path in (settings.tls_key, settings.tokens_file) if path]
        trusted = [path for path in (settings.tls_certificate, settings.tls_client_ca) if path]
        return loose_permissions(secret, trusted)

    def reload(self, *, at_once: bool = False) -> list[Reload]:
        """Read files that have changed and are whole; `at_once`: read all files. Call it now and then."""
        sources = [source for source in (self._certificates, self._tokens) if source is not None]
        reloads = [source.reload(at_once=at_once) for source in sources]
        return [reload for reload in reloads if reload is not None]
