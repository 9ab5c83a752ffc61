"""Both clients against the transport's own limits: sizes, timeouts, proxies."""

import socket
from collections.abc import Iterator

import grpc
import pytest
from tests.integration.scripted_server import Failure, ScriptedServer, running_server

from dragoman.client import AsyncClient, Client, MessageTooLargeError, UnavailableError
from dragoman.client.channel import ChannelSettings
from dragoman.common.errors import UsageError

NO_RETRIES = ChannelSettings(max_attempts=1)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running_server() as running:
        yield running


def test_a_request_that_is_too_large_is_sent_once_and_named(server: ScriptedServer) -> None:
    with Client(server.target, timeout_s=20) as client, pytest.raises(MessageTooLargeError) as caught:
        client.translate("x" * 5_000_000, model="dates")
    assert str(caught.value).startswith("the request has 5,000,0")
    assert "but the server takes at most 4,194,304" in str(caught.value)
    assert not server.script.requests


def test_a_failure_that_no_retry_mends_is_not_retried(server: ScriptedServer) -> None:
    in_vain = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=(("grpc-retry-pushback-ms", "-1"),))
    server.script.failures.extend([in_vain] * 5)
    with Client(server.target, timeout_s=20) as client, pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
        client.translate("un", model="dates")
    assert len(server.script.requests) == 1


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e10, 1e300, 10**400])
async def test_an_endless_timeout_is_one(server: ScriptedServer, timeout_s: float) -> None:
    with Client(server.target, timeout_s=timeout_s) as client:
        assert client.translate("un", model="dates")[0].text == "UN"
        assert client.translate("un", model="dates", timeout_s=timeout_s)[0].text == "UN"
        client.wait_until_serving(timeout_s=timeout_s)
    async with AsyncClient(server.target, timeout_s=timeout_s) as aio_client:
        assert [piece async for piece in aio_client.generate("a", model="m", timeout_s=timeout_s)] == ["aé "]
        await aio_client.wait_until_serving(timeout_s=timeout_s)


@pytest.mark.parametrize("timeout_s", [float("nan"), -1, float("-inf")])
def test_a_timeout_that_is_none_is_named(server: ScriptedServer, timeout_s: float) -> None:
    message = f"timeout_s must be a number of seconds from 0, not {timeout_s}"
    with pytest.raises(UsageError, match=message):
        Client(server.target, timeout_s=timeout_s)
    with Client(server.target) as client, pytest.raises(UsageError, match=message):
        client.models(timeout_s=timeout_s)
    assert not server.script.requests


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("http_proxy", f"http://user:secret@{address}")
        yield address


async def test_localhost_is_not_asked_of_a_proxy(server: ScriptedServer, dead_proxy: str) -> None:
    for target in (server.target, f"localhost:{server.port}", f"dns:///localhost:{server.port}"):
        with Client(target, timeout_s=10, settings=NO_RETRIES) as client:
            assert client.models()
        async with AsyncClient(target, timeout_s=10, settings=NO_RETRIES) as aio_client:
            assert await aio_client.models()


def test_a_proxy_that_does_not_answer_is_named_without_its_password(dead_proxy: str) -> None:
    refused = pytest.raises(UnavailableError)
    with Client("192.0.2.1:8500", timeout_s=10, settings=NO_RETRIES) as client, refused as caught:
        client.models()
    told = f"(through the proxy of http_proxy={dead_proxy}; set no_proxy to do without)"
    assert str(caught.value).endswith(told)
    assert "secret" not in str(caught.value)
