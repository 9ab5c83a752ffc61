"""Which targets are on this machine, and which proxy gRPC's core would use for the others."""

import pytest

from dragoman.client.channel import ChannelSettings
from dragoman.client.proxies import is_loopback, proxy_in_use

LOCAL = [
    "localhost:8500", "127.0.0.1:8500", "127.3.2.1:1", "[::1]:8500", "dns:///localhost:8500", "dns:localhost:8500",
    "ipv4:127.0.0.1:1,127.0.0.1:2", "ipv6:[::1]:8500", "unix:/run/dragoman.sock", "unix:///run/d.sock",
    "unix-abstract:d", "dns://8.8.8.8/localhost:1", "api.localhost:80",
]  # fmt: skip
REMOTE = [
    "models:8500", "10.0.0.7:1", "dns:///models.default.svc:8500", "ipv4:127.0.0.1:1,10.0.0.1:1", "[2001:db8::1]:1",
    "localhost.example.org:1", "notlocalhost:1", "0.0.0.0:1", "xds:///localhost:1",
]  # fmt: skip


@pytest.mark.parametrize("target", LOCAL)
def test_this_machine_is_reached_without_a_proxy(target: str) -> None:
    assert is_loopback(target)
    assert dict(ChannelSettings().arguments(target))["grpc.enable_http_proxy"] == 0
    assert proxy_in_use(target, {"http_proxy": "http://proxy:3128"}) is None


@pytest.mark.parametrize("target", REMOTE)
def test_any_other_machine_is_reached_as_the_environment_says(target: str) -> None:
    assert not is_loopback(target)
    assert dict(ChannelSettings().arguments(target))["grpc.enable_http_proxy"] == 1
    assert proxy_in_use(target, {"http_proxy": "http://proxy:3128"}) == "http_proxy=proxy:3128"


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"http_proxy": ""}, None),
        ({"https_proxy": "http://b:2", "http_proxy": "http://c:3"}, "https_proxy=b:2"),
        ({"grpc_proxy": "http://a:1", "https_proxy": "http://b:2"}, "grpc_proxy=a:1"),
        ({"http_proxy": "http://user:secret@c:3"}, "http_proxy=c:3"),
        ({"http_proxy": "http://c:3", "no_proxy": "example.org, .svc"}, None),
        ({"http_proxy": "http://c:3", "no_proxy": "example.org"}, "http_proxy=c:3"),
        ({"http_proxy": "http://c:3", "no_grpc_proxy": "example.org", "no_proxy": ".svc"}, "http_proxy=c:3"),
    ],
)
def test_the_variable_is_found_as_grpc_finds_it(environment: dict[str, str], proxy: str | None) -> None:
    assert proxy_in_use("dns:///models.svc:8500", environment) == proxy
