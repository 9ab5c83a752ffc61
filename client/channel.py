"""How a channel to a server behaves: balancing, retries, keepalive, sizes.

Everything is written in gRPC's own terms (a service config and channel arguments), so that it holds
for blocking and asyncio channels alike, and the same file works for clients in other languages:
https://github.com/grpc/grpc/blob/master/doc/service_config.md
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from dragoman.client.proxies import is_loopback
from dragoman.common.errors import UsageError

__all__ = ["DEFAULT_TIMEOUT_S", "WATCH_PAUSE_S", "ChannelSettings", "resolve_target"]

DEFAULT_TIMEOUT_S = 60.0
"""Deadline of a call whose caller names none."""

WATCH_PAUSE_S = 0.1
"""Pause before a server that went away while its health was watched is watched again."""

_SERVICES = ("dragoman.v1.TranslationService", "dragoman.v1.GenerationService", "dragoman.v1.ModelService")
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|passthrough):")


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """Settings of one channel. The defaults suit a service inside a cluster.

    Attributes:
        max_attempts: Tries of one call, the first included, 1 to 5 (gRPC's own limit); 1 turns retries
            off. A call is tried again when no server answers (UNAVAILABLE), the server stops before it has
            taken the call up (CANCELLED) or has too much to do (RESOURCE_EXHAUSTED). It is not tried again
            once a first part of the answer has come, nor where the server says that it would be in vain
            (`grpc-retry-pushback-ms` below 0). Between tries it waits as long as the server asks
            (the same key), else 0.1 s doubling up to 2 s.
        keepalive_time_s: A ping goes out after so much silence while calls run, so that a dead peer is
            noticed.
        keepalive_timeout_s: The connection is given up when the ping stays unanswered for so long.
        max_reconnect_delay_s: Longest pause between attempts to connect.
    """

    max_attempts: int = 5
    keepalive_time_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    max_reconnect_delay_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what gRPC would silently clip.

        Raises:
            UsageError: `max_attempts` is outside 1 to 5.
        """
        if not 1 <= self.max_attempts <= 5:
            raise UsageError(f"max_attempts = {self.max_attempts}: must be 1 to 5")

    def service_config(self) -> dict[str, Any]:
        """The gRPC service config: round-robin over every address, retries, and a brake on retries."""
        method: dict[str, Any] = {"name": [{"service": service} for service in _SERVICES]}
        if self.max_attempts > 1:
            method["retryPolicy"] = {
                "maxAttempts": self.max_attempts,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # A server that stops ends what it has not taken up yet with CANCELLED (gRPC core offers it no
                # other way); a call that its own caller cancels is over before retries are thought of.
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            }
        return {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [method],
            # Once more than a third of the calls fail, retries stop: they would only add to the overload. A hundred
            # failures at once are no overload: so many calls one client may have on lanes that die.
            "retryThrottling": {"maxTokens": 200, "tokenRatio": 0.5},
        }

    def arguments(self, target: str) -> list[tuple[str, int | str]]:
        """Channel arguments for `grpc.insecure_channel` and its siblings, for a channel to `target`."""
        return [
            # gRPC would send even calls to this machine through the proxy of the environment.
            ("grpc.enable_http_proxy", int(not is_loopback(target))),
            ("grpc.service_config", json.dumps(self.service_config())),
            ("grpc.service_config_disable_resolution", 1),  # a DNS TXT record must not override it
            ("grpc.enable_retries", int(self.max_attempts > 1)),
            ("grpc.keepalive_time_ms", int(self.keepalive_time_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.keepalive_timeout_s * 1000)),
            # Without it gRPC's core waits a minute for the answer to a ping, whatever the line above says.
            ("grpc.http2.ping_timeout_ms", int(self.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 0),
            # A server that is just starting is found a tenth of a second later, not a whole one.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", int(self.max_reconnect_delay_s * 1000)),
            # New pods behind a headless Service are seen within seconds (gRPC's default is 30).
            ("grpc.dns_min_time_between_resolutions_ms", 5000),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ]


def resolve_target(target: str) -> str:
    """The gRPC name of `target`: `host:port` becomes `dns:///host:port`, so that every address is used.

    A name that carries a gRPC scheme already (`dns:`, `unix:`, `ipv4:`, ...) stays as it is.

    Raises:
        UsageError: it is neither.
    """
    if _SCHEME.match(target):
        return target
    host, colon, port = target.rpartition(":")
    if "/" in target or not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"target {target!r} is not of the form HOST:PORT")
    return f"dns:///{target}"
