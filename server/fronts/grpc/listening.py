"""Where gRPC listens and how: the address, gRPC's channel arguments, and gRPC's own count of calls.

Three queues stand before a call's handler. The client keeps back what exceeds `max_streams_per_connection`. gRPC's
core keeps the calls that have arrived but were not taken up yet. The handler refuses what exceeds
`max_concurrent_calls`, and what would wait too long. Only the last queue can say why it refuses and when to try again.
But the event loop takes up calls a few at a time when it is busy (`dragoman.server.fronts.grpc.server`), so the
second queue has to be short, or nothing in it is still in time.
"""

import ipaddress
import socket
from collections.abc import Callable

import grpc
import grpc.aio
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz import ChannelzServicer

from dragoman.server.config import ListenSettings, is_unix
from dragoman.server.errors import AddressError
from dragoman.server.fronts.grpc.unix_sockets import check_socket_free

__all__ = [
    "bind",
    "channel_options",
    "check_free",
    "count_of_started_calls",
    "grpc_server_ids",
    "hold_port",
    "is_local",
    "max_streams",
]

MIN_STREAMS = 100
"""Fewer calls at one time on one connection are not recommended (RFC 9113, 6.5.2)."""
PENDING_CONNECTIONS = 6
"""Calls that wait to be taken up, in connections that are full of them. From there on gRPC's core ends new calls with
CANCELLED, without a reason, at random and ever more of them until it ends all at twice as many. With six, of 3,000
calls a second 1,777 are answered within their deadline of a second. With twenty 945 are: many a call is late when
it is taken up (docs/performance-log.md)."""


def channel_options(
    listen: ListenSettings, num_streams: int, *, shares_port: bool = False
) -> list[tuple[str, int]]:
    """The server's channel arguments, for `num_streams` calls at one time on a connection.

    With `shares_port` other fronts of this server listen on the port too, and the kernel divides connections among
    them. The names are those of grpc/impl/channel_arg_names.h.
    """
    max_pending = PENDING_CONNECTIONS * num_streams
    return [
        # Two servers on one port would share its connections by chance.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_concurrent_streams", num_streams),
        # gRPC's core counts a stream until its memory is freed, which clients cannot see. Without this allowance a
        # client that keeps to the limit is refused when it opens a stream as soon as another has ended. The sum is what
        # a client can hold that opens streams and resets them at once: it does not fill the queue for its neighbours.
        ("grpc.http2.max_deallocating_streams", num_streams),
        ("grpc.server.max_pending_requests", max_pending),
        ("grpc.server.max_pending_requests_hard_limit", 2 * max_pending),
        # Counts of calls, read by `count_of_started_calls`; no traces of single events.
        ("grpc.enable_channelz", 1),
        ("grpc.max_channel_trace_event_memory_per_node", 0),
        ("grpc.max_receive_message_length", listen.max_message_bytes),
        ("grpc.max_send_message_length", listen.max_message_bytes),
        ("grpc.max_connection_age_ms", _milliseconds(listen.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(listen.max_connection_age_grace_s)),
        ("grpc.keepalive_time_ms", _milliseconds(listen.keepalive_time_s)),
        ("grpc.keepalive_timeout_ms", _milliseconds(listen.keepalive_timeout_s)),
        # Without it gRPC's core gives the connection up when a ping has been unanswered for a minute, whatever the
        # timeout of keepalive says.
        ("grpc.http2.ping_timeout_ms", _milliseconds(listen.keepalive_timeout_s)),
        ("grpc.max_connection_idle_ms", _milliseconds(listen.max_connection_idle_s)),
        ("grpc.max_allowed_incoming_connections", listen.max_connections),
        ("grpc.server_handshake_timeout_ms", _milliseconds(listen.handshake_timeout_s)),
        # Between the two limits gRPC would refuse a call at random.
        ("grpc.max_metadata_size", listen.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", listen.max_metadata_bytes),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(listen.min_ping_interval_s)),
    ]


def max_streams(listen: ListenSettings, num_slots: int) -> int:
    """Returns how many calls of one connection run at one time, with models that decode `num_slots` sequences."""
    limit = listen.max_streams_per_connection
    return max(MIN_STREAMS, num_slots) if isinstance(limit, str) else limit


def grpc_server_ids() -> set[int]:
    """The ids of this process's gRPC servers. gRPC's core gives an id when it is asked for, in no order."""
    return {server.ref.server_id for server in _grpc_servers()}


def count_of_started_calls(ids: set[int]) -> Callable[[], int | None]:
    """Return a function that gives how many calls have reached the gRPC servers with these `ids`.

    gRPC's core counts a call when its headers have come, before it waits to be taken up or is dropped. The function may
    be called from any thread, but only now and then: it takes milliseconds while many calls wait. It returns None once
    the servers have been destroyed.
    """

    def count() -> int | None:
        started = [
            int(server.data.calls_started) for server in _grpc_servers() if server.ref.server_id in ids
        ]
        return sum(started) if started else None

    return count


def _grpc_servers() -> list[channelz_pb2.Server]:
    """All of them, in the order of their ids. gRPC's core gives a hundred at a time."""
    servers: list[channelz_pb2.Server] = []
    while True:
        first = servers[-1].ref.server_id + 1 if servers else 0
        page = ChannelzServicer.GetServers(channelz_pb2.GetServersRequest(start_server_id=first), None)
        servers += page.server
        if page.end or not page.server:
            return servers


def is_local(host: str) -> bool:
    """Whether only programs on this machine can reach a server that listens on `host`."""
    if is_unix(host) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_free(host: str, port: int) -> None:
    """Check that `host` and `port` can be bound: gRPC reports a port in use late and without the reason.

    Raises:
        AddressError: the system refuses the address.
    """
    if is_unix(host):
        check_socket_free(host)
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AddressError(f"cannot serve gRPC on {host}:{port}: {error.strerror}") from error


def hold_port(host: str, port: int) -> socket.socket:
    """A socket that has `port` for the fronts of this server, and no other program: the fronts share it.

    It does not listen. Call `check_free` first: this finds no server that shares its port itself.

    Raises:
        AddressError: the system refuses the address.
    """
    holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        holder.close()
        raise AddressError(f"cannot serve gRPC on {host}:{port}: {error.strerror}") from error
    return holder


def bind(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Add the address to `server` and return the bound port, also when `port` is 0.

    A Unix domain socket has no port: 0 is returned. Without `credentials` connections are in plain text.

    Raises:
        AddressError: the address was taken since `check_free`.
    """
    address = _address(host, port)
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise AddressError(f"cannot serve gRPC on {address}: the address was taken meanwhile") from error
    return 0 if is_unix(host) else bound


def _address(host: str, port: int) -> str:
    if is_unix(host):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
