"""Where gRPC listens and how: the address, and gRPC's channel arguments."""

import socket

import grpc.aio

from server.config import ListenSettings
from server.errors import AddressError
from server.unix_sockets import check_socket_free, is_unix

__all__ = ["bind", "channel_options", "check_free"]


def channel_options(listen: ListenSettings) -> list[tuple[str, int]]:
    """The server's channel arguments. The names are those of grpc/impl/channel_arg_names.h."""
    return [
        # Two servers on one port would share its connections by chance.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", listen.max_message_bytes),
        ("grpc.max_send_message_length", listen.max_message_bytes),
        ("grpc.max_connection_age_ms", _milliseconds(listen.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(listen.max_connection_age_grace_s)),
        ("grpc.keepalive_time_ms", _milliseconds(listen.keepalive_time_s)),
        ("grpc.keepalive_timeout_ms", _milliseconds(listen.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(listen.min_ping_interval_s)),
    ]


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


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Add the address to `server` and return the bound port, also when `port` is 0.

    A Unix domain socket has no port: 0 is returned.

    Raises:
        AddressError: the address was taken since `check_free`.
    """
    address = _address(host, port)
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressError(f"cannot serve gRPC on {address}: the address was taken meanwhile") from error
    return 0 if is_unix(host) else bound


def _address(host: str, port: int) -> str:
    if is_unix(host):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
