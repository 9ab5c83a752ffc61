"""The client that a call comes from. Knows no transport."""

from collections.abc import Collection
from dataclasses import dataclass

from dragoman.server.errors import PermissionDenied
from dragoman.server.priority import Priority
from dragoman.server.scopes import Scope

__all__ = ["NOBODY", "Caller"]


@dataclass(frozen=True, slots=True)
class Caller:
    """One client of the server.

    Attributes:
        identity: a name that the server has from credentials, or the client's address without a port.
        scopes: what the caller may do.
        is_authenticated: whether credentials prove the identity.
        best_priority: calls that ask for a better one get this one.
    """

    identity: str
    scopes: frozenset[Scope]
    is_authenticated: bool = False
    best_priority: Priority = Priority.HIGH

    def check(self, scopes: Collection[Scope]) -> None:
        """Refuse a call that needs one of `scopes`.

        Raises:
            PermissionDenied: the caller has none of them.
        """
        if self.scopes.isdisjoint(scopes):
            raise PermissionDenied(f"this call needs the scope {' or '.join(sorted(scopes))}")


NOBODY = Caller("", frozenset())
"""The caller of a call before it is identified."""
