"""Bearer tokens: made at random, known to the server by their hashes alone.

The tokens file is TOML, one line a token:

    ci = { hash = "sha256:9f86...", scopes = ["infer"], expires = 2027-01-01T00:00:00Z }

A slow hash (bcrypt, argon2) protects passwords, which people choose and which can therefore be guessed. A token is 256
bits of chance: nobody finds one by trying, however fast the hash is, and each call has to be checked within
microseconds. So SHA-256 is enough.
"""

import datetime as dt
import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from dragoman.server.errors import CredentialsError
from dragoman.server.priority import Priority
from dragoman.server.scopes import Scope
from dragoman.server.security.files import read_file

__all__ = ["Token", "TokenTable", "bearer_text", "check_token_name", "make_token", "token_line"]

PREFIX = "dragoman_"
"""Every token begins so: programs that look for leaked secrets find it."""
TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Token:
    """The facts that the server keeps of a token.

    Attributes:
        name: whose it is.
        scopes: what its bearer may do.
        expires_s: when it ends, as seconds since the epoch; None: never.
        best_priority: the best one that its bearer's calls get.
    """

    name: str
    scopes: frozenset[Scope]
    expires_s: float | None = None
    best_priority: Priority = Priority.HIGH

    def is_valid(self, now_s: float) -> bool:
        """Whether the token has not expired."""
        return self.expires_s is None or now_s < self.expires_s


class TokenTable:
    """The tokens that the server accepts.

    Attributes:
        names: of all of them.
    """

    def __init__(self, tokens: Iterable[tuple[bytes, Token]]) -> None:
        """Accept `tokens`, each with the SHA-256 of its text."""
        # A dictionary compares keys from their first difference on, which takes a measurable time. Its keys are MACs
        # under a key that no caller knows: that time says nothing of a hash, and one look-up finds one of many tokens.
        self._key = secrets.token_bytes(32)
        tokens = list(tokens)
        self.names = frozenset(token.name for _, token in tokens)
        self._tokens = {self._mac(digest): (digest, token) for digest, token in tokens}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a tokens file. No message repeats a value of it: one might be a token that was pasted there.

        Raises:
            CredentialsError: the file cannot be read, or an entry is not right.
        """
        content = read_file(path, "tokens file")
        try:
            entries = tomllib.loads(content.decode())
        except (ValueError, RecursionError) as error:
            where = re.search(r"\(at .*\)$", str(error))
            raise CredentialsError(
                f"tokens file {path} is not valid TOML {where[0] if where else ''}".strip()
            ) from None
        return cls(_token(path, name, entry) for name, entry in entries.items())

    def find(self, text: str) -> Token | None:
        """Returns the token whose text is `text`, expired or not; None where there is none."""
        digest = hashlib.sha256(text.encode()).digest()
        known = self._tokens.get(self._mac(digest))
        return known[1] if known is not None and hmac.compare_digest(known[0], digest) else None

    def _mac(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._key, digest_size=32).digest()


def bearer_text(header: str) -> str | None:
    """Returns the token's text in a header `Authorization: Bearer TOKEN` (RFC 6750); None where it is another one."""
    scheme, space, text = header.partition(" ")
    return text.strip() if space and scheme.lower() == "bearer" else None


def make_token() -> str:
    """Returns the text of a new token."""
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def check_token_name(name: str) -> bool:
    """Whether a token may have this name: letters, digits, dots, dashes; a part of it is a key in TOML."""
    return _NAME.fullmatch(name) is not None


def token_line(
    text: str,
    name: str,
    scopes: Iterable[Scope],
    expires: dt.datetime | None,
    best_priority: Priority = Priority.HIGH,
) -> str:
    """Returns the line of a tokens file that makes the server accept the token `text`."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    listed = ", ".join(f'"{scope}"' for scope in scopes)
    least = f', priority = "{best_priority.name.lower()}"' if best_priority is not Priority.HIGH else ""
    until = f", expires = {expires:%Y-%m-%dT%H:%M:%SZ}" if expires else ""
    return f'"{name}" = {{ hash = "sha256:{digest}", scopes = [{listed}]{until}{least} }}'


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hash: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Literal["infer", "admin", "metrics"], ...], Field(min_length=1)]
    expires: AwareDatetime | None = None
    priority: Literal["high", "normal", "low"] = "high"


def _token(path: Path, name: str, values: Any) -> tuple[bytes, Token]:
    if not check_token_name(name):
        raise CredentialsError(
            f"tokens file {path}: a name has other characters than letters, digits, '.', '_', '-'"
        )
    try:
        entry = _Entry.model_validate(values if isinstance(values, Mapping) else {})
    except ValidationError as error:
        problem = error.errors(include_input=False, include_context=False, include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"][:1])
        raise CredentialsError(f"tokens file {path}: token {name}: {key}: {problem['msg']}") from None
    scopes = frozenset(map(Scope, entry.scopes))
    expires_s = entry.expires.timestamp() if entry.expires else None
    return bytes.fromhex(entry.hash.removeprefix("sha256:")), Token(
        name, scopes, expires_s, Priority[entry.priority.upper()]
    )
