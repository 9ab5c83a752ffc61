"""Whom a gRPC call comes from: a bearer token, a client's certificate, else only an address.

Where authentication is on, a call without the right credentials is refused before its message is read.
"""

import functools
import ipaddress
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio

from dragoman.server.errors import PermissionDenied, Unauthenticated
from dragoman.server.operations.metrics import RejectionReason
from dragoman.server.requests.caller import Caller
from dragoman.server.requests.record import Metadata
from dragoman.server.scopes import Scope
from dragoman.server.security.credentials import Credentials
from dragoman.server.security.tokens import TokenTable, bearer_text
from dragoman.server.settings.security import SecuritySettings

__all__ = ["Authenticator", "Guard", "GuardedServer", "address_of", "authenticator_of"]

# Strings: generic in the stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

ANY_CERTIFICATE = "*"


class Authenticator:
    """Finds the caller of each call."""

    def __init__(
        self,
        anonymous_scopes: Iterable[Scope] = (Scope.INFER,),
        *,
        tokens: Callable[[], TokenTable | None] = lambda: None,
        certificates: Mapping[str, frozenset[Scope]] | None = None,
        asks_for_certificates: bool = False,
        ipv6_prefix_bits: int = 128,
    ) -> None:
        """Give callers without credentials `anonymous_scopes`; none: refuse them.

        Args:
            anonymous_scopes: What everybody may do.
            tokens: Returns the tokens of the moment.
            certificates: Scopes by the name in a client's certificate; `*` stands for any other.
            asks_for_certificates: Whether clients have shown certificates, that TLS has checked.
            ipv6_prefix_bits: Callers without credentials are one client whose addresses begin with the same bits.
        """
        self._anonymous_scopes = frozenset(anonymous_scopes)
        self._tokens = tokens
        self._certificates = dict(certificates or {})
        self._asks_for_certificates = asks_for_certificates
        self._ipv6_prefix_bits = ipv6_prefix_bits

    def caller_of(self, context: Context, metadata: Metadata) -> Caller:
        """Returns the caller of the call that `context` belongs to and that came with `metadata`.

        Raises:
            Unauthenticated: its token is not known or has expired, or it has to have credentials and has none.
        """
        tokens = self._tokens()
        if tokens is not None:
            for key, value in metadata:
                if key == "authorization":
                    return _bearer(tokens, value)
        if self._asks_for_certificates:
            return self._owner(context)
        if not self._anonymous_scopes:
            raise Unauthenticated(
                "this server asks for a bearer token: metadata `authorization: Bearer TOKEN`"
            )
        return Caller(self._address_of(context), self._anonymous_scopes)

    def _owner(self, context: Context) -> Caller:
        """The caller by its certificate, which TLS has checked."""
        names = _names(context.auth_context())
        for name in names:
            if (scopes := self._certificates.get(name)) is not None:
                return Caller(name, scopes, is_authenticated=True)
        scopes = self._certificates.get(ANY_CERTIFICATE, self._anonymous_scopes)
        if not scopes:
            raise Unauthenticated(
                "this server knows neither a token of this call nor its certificate's names"
            )
        return Caller(names[0] if names else self._address_of(context), scopes, is_authenticated=bool(names))

    def _address_of(self, context: Context) -> str:
        return address_of(context.peer(), self._ipv6_prefix_bits)


def authenticator_of(
    settings: SecuritySettings,
    credentials: Credentials,
    open_scopes: Iterable[Scope],
    *,
    ipv6_prefix_bits: int,
) -> Authenticator:
    """The authenticator that `settings` ask for; everybody has `open_scopes` where authentication is off."""
    return Authenticator(
        () if settings.asks_for_credentials else open_scopes,
        tokens=lambda: credentials.tokens,
        certificates={
            name: frozenset(map(Scope, scopes)) for name, scopes in settings.client_certificates.items()
        },
        asks_for_certificates=settings.tls_client_ca is not None,
        ipv6_prefix_bits=ipv6_prefix_bits,
    )


class Guard:
    """Lets callers with one of `scopes` pass: for methods that have no chain of interceptors around them."""

    def __init__(
        self,
        authenticator: Authenticator,
        scopes: frozenset[Scope],
        on_refusal: Callable[[RejectionReason], object],
    ) -> None:
        """`on_refusal` is called with `unauthenticated` or `not_permitted` for each call that is refused."""
        self._authenticator = authenticator
        self._scopes = scopes
        self._on_refusal = on_refusal

    async def check(self, context: Context) -> None:
        """End the call of `context` if its caller may not make it."""
        metadata: Any = context.invocation_metadata() or ()
        try:
            self._authenticator.caller_of(context, metadata).check(self._scopes)
        except Unauthenticated as error:
            self._on_refusal("unauthenticated")
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except PermissionDenied as error:
            self._on_refusal("not_permitted")
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))


class GuardedServer:
    """Registers the services of a library, whose methods then answer only callers that pass `guard`."""

    def __init__(self, server: grpc.aio.Server, guard: Guard) -> None:
        self._server = server
        self._guard = guard

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Does nothing: generated code registers the same methods in this older way too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Register the methods of `service`, all of which take and give streams."""
        guarded = {name: self._guarded(handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, guarded)

    def _guarded(self, handler: Handler) -> Handler:
        behaviour: Any = handler.stream_stream
        assert behaviour is not None, "the reflection service alone is guarded"

        async def guarded(requests: Any, context: Context) -> Any:
            await self._guard.check(context)
            async for response in behaviour(requests, context):
                yield response

        return grpc.stream_stream_rpc_method_handler(
            guarded, handler.request_deserializer, handler.response_serializer
        )


@functools.lru_cache(512)  # a peer is a connection, which has many calls
def address_of(peer: str, ipv6_prefix_bits: int = 128) -> str:
    """The address of a peer without its port, or the network of so many bits that an IPv6 address belongs to.

    gRPC writes `ipv4:127.0.0.1:4071`, `ipv6:%5B::1%5D:4071`, `unix:PATH`. An IPv4 address within an IPv6 one is that
    IPv4 address. Addresses of this machine and of its links are told as they are: all on a link are of one network.
    """
    scheme, _, address = peer.partition(":")
    if scheme not in {"ipv4", "ipv6"}:
        return peer
    host, _, _ = urllib.parse.unquote(address).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return _network_of(host, ipv6_prefix_bits) if scheme == "ipv6" else host


def _network_of(host: str, prefix_bits: int) -> str:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if prefix_bits == address.max_prefixlen or address.is_loopback or address.is_link_local:
        return host
    return str(ipaddress.IPv6Network((address.packed, prefix_bits), strict=False))


def _bearer(tokens: TokenTable, header: str | bytes) -> Caller:
    text = bearer_text(header) if isinstance(header, str) else None
    if text is None:
        raise Unauthenticated("the metadata `authorization` is not of the form `Bearer TOKEN`")
    token = tokens.find(text)
    if token is None:
        raise Unauthenticated("the bearer token is not known to this server")
    if not token.is_valid(time.time()):
        raise Unauthenticated("the bearer token has expired")
    return Caller(token.name, token.scopes, is_authenticated=True, best_priority=token.best_priority)


def _names(auth_context: Mapping[str, Iterable[bytes]]) -> list[str]:
    """Subject alternative names of the client's certificate, then its common name."""
    keys = ("x509_subject_alternative_name", "x509_common_name")
    return [value.decode(errors="replace") for key in keys for value in auth_context.get(key, ())]
