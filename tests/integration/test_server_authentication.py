"""Authentication: who gets an answer, who gets a refusal, and what of it is counted and logged."""

import contextlib
import datetime as dt
import http.client
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.integration.certificates import Authority, replace
from tests.integration.serving import Served, error_of, eventually, serving

from dragoman.server.operations import reloading
from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import make_token, token_line
from dragoman.v1 import model_pb2, translation_pb2

REQUEST = translation_pb2.TranslateRequest(model="spell", inputs=["4071"])
MODELS = Path(__file__).parents[1] / "fixtures" / "bundles"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED


class Tokens:
    """A tokens file, and the tokens that it has the hashes of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self.infer = self.add("app", Scope.INFER)
        self.admin = self.add("operator", Scope.ADMIN)
        self.metrics = self.add("prometheus", Scope.METRICS)
        self.expired = self.add("old", Scope.INFER, expires=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))

    def add(self, name: str, *scopes: Scope, expires: dt.datetime | None = None) -> str:
        text = make_token()
        self._lines.append(token_line(text, name, scopes, expires))
        replace(self.path, "\n".join(self._lines).encode())
        return text


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokens:
    monkeypatch.setattr(reloading, "RELOAD_INTERVAL_S", 0.02)
    return Tokens(tmp_path / "tokens.toml")


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


async def code_of(call: Any) -> grpc.StatusCode:
    return (await error_of(call)).code()


def refused(served: Served, reason: str) -> float:
    return served.metric("rejected_requests_total", model="unknown", stage="arrival", reason=reason)


async def test_calls_need_a_token_with_the_scope(tokens: Tokens, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(MODELS, f"security.tokens_file={tokens.path}") as served:
        translate = served.translation.Translate
        assert await translate(REQUEST, metadata=bearer(tokens.infer))
        assert await served.models.ListModels(model_pb2.ListModelsRequest(), metadata=bearer(tokens.admin))
        assert await code_of(translate(REQUEST, metadata=bearer(tokens.admin))) is PERMISSION_DENIED
        assert await code_of(translate(REQUEST, metadata=bearer(tokens.metrics))) is PERMISSION_DENIED
        wrong = (
            (),
            bearer(tokens.expired),
            bearer(make_token()),
            bearer(tokens.infer[:-1]),
            bearer(""),
            (("authorization", f"Basic {tokens.infer}"),),
            (("authorization", tokens.infer),),
        )
        for metadata in wrong:
            assert await code_of(translate(REQUEST, metadata=metadata)) is UNAUTHENTICATED
        stream = served.translation.StreamTranslate(REQUEST)
        assert await code_of(stream) is UNAUTHENTICATED
        assert await code_of(served.models.ListModels(model_pb2.ListModelsRequest())) is UNAUTHENTICATED
        assert refused(served, "unauthenticated") == len(wrong) + 2
        assert refused(served, "not_permitted") == 2
    log = capsys.readouterr().out
    lines = [line for line in log.splitlines() if "UNAUTHENTICATED" in line]
    assert all("debug" in line for line in lines)  # counted, not logged one by one
    for token in vars(tokens).values():
        assert str(token) not in log or token is tokens.path


async def test_health_names_no_model_to_strangers(tokens: Tokens) -> None:
    async with serving(MODELS, f"security.tokens_file={tokens.path}") as served:
        health: Any = health_pb2_grpc.HealthStub(served.channel)
        everything: Any = health_pb2.HealthListRequest()  # type: ignore[attr-defined]
        before = refused(served, "unauthenticated"), refused(served, "not_permitted")
        assert await code_of(health.List(everything)) is UNAUTHENTICATED
        assert await code_of(health.List(everything, metadata=bearer(tokens.metrics))) is PERMISSION_DENIED
        assert (refused(served, "unauthenticated"), refused(served, "not_permitted")) == (
            before[0] + 1,
            before[1] + 1,
        )
        for token in (tokens.infer, tokens.admin):
            assert "spell/2" in (await health.List(everything, metadata=bearer(token))).statuses
        # Probes have no credentials.
        known = health_pb2.HealthCheckRequest(service="spell")
        assert (await health.Check(known)).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(known)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_health_is_open_and_reflection_is_not(tokens: Tokens) -> None:
    async with serving(MODELS, f"security.tokens_file={tokens.path}") as served:
        health: Any = health_pb2_grpc.HealthStub(served.channel)
        response = await health.Check(health_pb2.HealthCheckRequest())
        assert response.status == health_pb2.HealthCheckResponse.SERVING
        channel: Any = served.channel
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")

        def reflect(metadata: Any) -> Any:
            return reflection.ServerReflectionInfo(iter([ask]), metadata=metadata)

        assert await code_of(reflect(())) is UNAUTHENTICATED
        assert await code_of(reflect(bearer(tokens.metrics))) is PERMISSION_DENIED
        assert (refused(served, "unauthenticated"), refused(served, "not_permitted")) == (1, 1)
        names = [
            service.name
            async for response in reflect(bearer(tokens.infer))
            for service in response.list_services_response.service
        ]
        assert "dragoman.v1.TranslationService" in names


async def test_a_token_that_is_added_or_taken_away_counts_within_moments(tokens: Tokens) -> None:
    async with serving(MODELS, f"security.tokens_file={tokens.path}") as served:
        translate = served.translation.Translate
        new = tokens.add("new", Scope.INFER)
        reloads = {"kind": "tokens", "result": "ok"}
        await eventually(lambda: served.metric("credential_reloads_total", **reloads) == 1)
        assert await translate(REQUEST, metadata=bearer(new))
        replace(tokens.path, token_line(new, "new", [Scope.INFER], None).encode())
        await eventually(lambda: served.metric("credential_reloads_total", **reloads) == 2)
        assert await code_of(translate(REQUEST, metadata=bearer(tokens.infer))) is UNAUTHENTICATED
        replace(tokens.path, b'new = { hash = "sha256:short" }')
        failed = {"kind": "tokens", "result": "failed"}
        await eventually(lambda: served.metric("credential_reloads_total", **failed) == 1)
        assert await translate(REQUEST, metadata=bearer(new))


async def test_metrics_need_a_token_and_probes_do_not(tokens: Tokens) -> None:
    overrides = (f"security.tokens_file={tokens.path}", "security.metrics_need_token=true")
    async with serving(MODELS, *overrides) as served:

        def get(path: str, token: str | None = None) -> tuple[int, str | None]:
            connection = http.client.HTTPConnection("127.0.0.1", served.server.metrics_port, timeout=20)
            with contextlib.closing(connection):
                connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
                response = connection.getresponse()
                return response.status, response.getheader("WWW-Authenticate")

        assert get("/metrics") == (401, 'Bearer realm="dragoman"')
        assert get("/metrics", make_token()) == (401, 'Bearer realm="dragoman", error="invalid_token"')
        assert get("/metrics", tokens.expired)[0] == 401
        assert get("/metrics", tokens.infer)[0] == 403
        assert get("/metrics", tokens.metrics) == (200, None)
        assert (get("/healthz")[0], get("/readyz")[0]) == (200, 200)


async def test_the_names_of_a_certificate_have_scopes(tokens: Tokens, tmp_path: Path) -> None:
    authority = Authority.in_folder(tmp_path)
    overrides = (
        *authority.settings,
        f"security.tls_client_ca={tmp_path / 'ca.pem'}",
        f"security.tokens_file={tokens.path}",
        'security.client_certificates={"app.example" = ["infer"], "bob" = ["admin"]}',
    )
    async with serving(MODELS, *overrides) as served:

        async def code(credentials: grpc.ChannelCredentials, metadata: Any = ()) -> grpc.StatusCode | None:
            async with grpc.aio.secure_channel(f"localhost:{served.server.port}", credentials) as channel:
                over = Served(served.server, channel)
                try:
                    await over.translation.Translate(REQUEST, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    return error.code()
                return None

        assert await code(authority.client("app.example")) is None
        assert await code(authority.client("x.example", common_name="bob")) is PERMISSION_DENIED
        assert await code(authority.client("other.example")) is UNAUTHENTICATED
        assert await code(authority.client("other.example"), bearer(tokens.infer)) is None
        assert await code(authority.client("app.example"), bearer(make_token())) is UNAUTHENTICATED


async def test_the_id_of_a_call_comes_back(tokens: Tokens) -> None:
    async with serving(MODELS, f"security.tokens_file={tokens.path}") as served:

        async def id_of(*metadata: tuple[str, str]) -> str:
            call = served.translation.Translate(REQUEST, metadata=metadata)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call
            return str(dict(await call.trailing_metadata())["x-request-id"])

        token = bearer(tokens.infer)[0]
        assert await id_of(token, ("x-request-id", "mine-4071")) == "mine-4071"
        assert await id_of(("x-request-id", "mine-4071")) == "mine-4071"  # a refused call
        made = await id_of(token, ("x-request-id", "two words"))
        assert len(made) == 16
        assert await id_of(token) != made


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_tokens_that_the_network_can_read_are_warned_of(
    host: str, tokens: Tokens, capsys: pytest.CaptureFixture[str], *, warns: bool
) -> None:
    async with serving(MODELS, f"security.tokens_file={tokens.path}", f"server.host={host}"):
        pass
    assert ("tokens_in_plain_text" in capsys.readouterr().out) is warns


async def test_files_that_others_may_read_or_write_are_warned_of(
    tokens: Tokens, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority.in_folder(tmp_path)
    overrides = (*authority.settings, f"security.tokens_file={tokens.path}")
    async with serving(MODELS, *overrides):
        pass
    assert "loose_permissions" not in capsys.readouterr().out
    tokens.path.chmod(0o666)
    (tmp_path / "key.pem").chmod(0o644)
    (tmp_path / "cert.pem").chmod(0o644)  # anybody may read a certificate
    async with serving(MODELS, *overrides):
        pass
    warnings = [line for line in capsys.readouterr().out.splitlines() if "loose_permissions" in line]
    assert len(warnings) == 2
    assert any("key.pem can be read by every user" in line for line in warnings)
    assert any("tokens.toml can be written by others" in line for line in warnings)
