"""Whom a call comes from, and what that caller may do. Knows no transport."""

import enum
from dataclasses import dataclass

__all__ = ["NOBODY", "Caller", "Scope"]


class Scope(enum.StrEnum):
    """What a caller may do: ask models, change what is served, read metrics."""

    INFER = "infer"
    ADMIN = "admin"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Caller:
    """One client of the server.

    Attributes:
        identity: a name that the server has from credentials, or the client's address without a port.
        scopes: what the caller may do.
        is_authenticated: whether credentials prove the identity.
    """

    identity: str
    scopes: frozenset[Scope]
    is_authenticated: bool = False


NOBODY = Caller("", frozenset())
"""Of a call whose caller is not known yet."""
