"""Whom a gRPC call comes from."""

import urllib.parse
from collections.abc import Iterable
from typing import Any, TypeAlias

import grpc.aio

from dragoman.server.requests.caller import Caller, Scope

__all__ = ["Authenticator", "address_of"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Authenticator:
    """Finds the caller of each call."""

    def __init__(self, anonymous_scopes: Iterable[Scope] = (Scope.INFER,)) -> None:
        """Give callers without credentials `anonymous_scopes`."""
        self._anonymous_scopes = frozenset(anonymous_scopes)

    def caller_of(self, context: Context) -> Caller:
        """Returns the caller of the call that `context` belongs to."""
        return Caller(address_of(context.peer()), self._anonymous_scopes)


def address_of(peer: str) -> str:
    """The address of a peer without its port. gRPC writes `ipv4:127.0.0.1:4071`, `ipv6:%5B::1%5D:4071`, `unix:PATH`."""
    scheme, _, address = peer.partition(":")
    if scheme not in {"ipv4", "ipv6"}:
        return peer
    host, _, _ = urllib.parse.unquote(address).rpartition(":")
    return host.removeprefix("[").removesuffix("]")
