"""TLS: who may connect, and certificates that change while calls run."""

import asyncio
import contextlib
import datetime as dt
import http.client
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.integration.certificates import Authority, replace
from tests.integration.serving import Served, eventually, http_get, serving

from dragoman.server.operations import reloading
from dragoman.v1 import translation_pb2, translation_pb2_grpc

REQUEST = translation_pb2.TranslateRequest(model="spell", inputs=["4071"])
MODELS = Path(__file__).parents[1] / "fixtures" / "bundles"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.in_folder(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading, "RELOAD_INTERVAL_S", 0.02)


@contextlib.asynccontextmanager
async def secure(served: Served, credentials: grpc.ChannelCredentials) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.secure_channel(f"localhost:{served.server.port}", credentials) as channel:
        yield channel


async def ask(channel: grpc.aio.Channel) -> bool:
    stub: translation_pb2_grpc.TranslationServiceAsyncStub = translation_pb2_grpc.TranslationServiceStub(
        channel
    )
    response = await stub.Translate(REQUEST, timeout=20)
    return len(response.translations) == 1


async def code_of(channel: grpc.aio.Channel) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel)
    return caught.value.code()


def names_shown(port: int, authority: Authority) -> set[str]:
    """The names in the certificate that a new connection gets to see."""
    context = ssl.create_default_context(cadata=authority.root.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as over_tls,
    ):
        shown = over_tls.getpeercert()
        assert shown is not None
        names: Any = shown["subjectAltName"]
        return {name for _, name in names}


async def test_a_client_that_trusts_the_authority_is_answered_and_plain_text_is_not(
    authority: Authority,
) -> None:
    async with serving(MODELS, *authority.settings) as served:
        async with secure(served, authority.client()) as channel:
            assert await ask(channel)
        assert await code_of(served.channel) is grpc.StatusCode.UNAVAILABLE
        other = Authority.in_folder(authority.folder)
        async with secure(served, other.client()) as channel:
            assert await code_of(channel) is grpc.StatusCode.UNAVAILABLE


async def test_a_client_without_a_certificate_is_refused_where_one_is_asked_for(authority: Authority) -> None:
    mutual = f"security.tls_client_ca={authority.folder / 'ca.pem'}"
    async with serving(MODELS, *authority.settings, mutual) as served:
        async with secure(served, authority.client("client.example")) as channel:
            assert await ask(channel)
        async with secure(served, authority.client()) as channel:
            assert await code_of(channel) is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_is_shown_to_new_connections_and_no_call_fails(
    authority: Authority,
) -> None:
    async with serving(MODELS, *authority.settings) as served:
        port = served.server.port
        is_over = asyncio.Event()

        async def keep_asking() -> int:
            num_answers = 0
            while not is_over.is_set():
                async with secure(served, authority.client()) as channel:  # a handshake each
                    assert await ask(channel)
                num_answers += 1
            return num_answers

        asking = [asyncio.create_task(keep_asking()) for _ in range(3)]
        async with secure(served, authority.client()) as old:
            assert await ask(old)
            for round_ in ("first", "second", "third"):
                authority.renew(f"{round_}.example")
                async with asyncio.timeout(20):
                    while f"{round_}.example" not in await asyncio.to_thread(names_shown, port, authority):
                        await asyncio.sleep(0.01)
            assert await ask(old)
        is_over.set()
        assert all(num_answers > 0 for num_answers in await asyncio.gather(*asking))
        assert served.metric("credential_reloads_total", kind="certificate", result="ok") >= 3


@pytest.mark.parametrize("broken", ["not PEM", "of another key", "expired", "gone"])
async def test_a_certificate_that_is_not_right_is_not_used(
    broken: str, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(MODELS, *authority.settings) as served:
        expiry = served.metric("certificate_expiry_timestamp_seconds", certificate="server")
        assert expiry > 32_000_000_000  # of a test's certificates: the year 3000
        certificate = authority.folder / "cert.pem"
        if broken == "expired":
            leaf = authority.ca.issue_cert("localhost", not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
            replace(authority.folder / "key.pem", leaf.private_key_pem.bytes())
            replace(certificate, leaf.cert_chain_pems[0].bytes())
        elif broken == "of another key":
            replace(certificate, authority.ca.issue_cert("localhost").cert_chain_pems[0].bytes())
        elif broken == "not PEM":
            replace(certificate, b"MARKER-OF-A-SECRET")
        else:
            certificate.unlink()
        failed = {"kind": "certificate", "result": "failed"}
        await eventually(lambda: served.metric("credential_reloads_total", **failed) == 1)
        async with secure(served, authority.client()) as channel:
            assert await ask(channel)
        assert served.metric("certificate_expiry_timestamp_seconds", certificate="server") == expiry
        authority.renew("whole.example")
        await eventually(
            lambda: served.metric("credential_reloads_total", kind="certificate", result="ok") == 1
        )
        assert "whole.example" in await asyncio.to_thread(names_shown, served.server.port, authority)
    log = capsys.readouterr().out
    assert "credentials_not_reloaded" in log
    assert "MARKER" not in log


async def test_metrics_and_probes_over_tls(authority: Authority) -> None:
    async with serving(MODELS, *authority.settings, "security.http_tls=true") as served:
        context = ssl.create_default_context(cadata=authority.root.decode())

        def get(path: str) -> tuple[int, int]:

            connection = http.client.HTTPSConnection(
                "127.0.0.1", served.server.metrics_port, context=context, timeout=20
            )
            with contextlib.closing(connection):
                connection.request("GET", path)
                first = connection.getresponse()
                size = len(first.read())
                connection.request("GET", path)  # the same connection
                second = connection.getresponse()
                second.read()
                assert first.status == second.status
                return first.status, size

        assert (await asyncio.to_thread(get, "/readyz"))[0] == 200
        status, size = await asyncio.to_thread(get, "/metrics")
        assert (status, size > 16 * 1024) == (200, True)
        with pytest.raises((OSError, http.client.HTTPException)):
            await asyncio.to_thread(http_get, served.server.metrics_port, "/metrics")
