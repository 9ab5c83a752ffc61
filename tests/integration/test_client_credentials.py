"""Clients and commands that show a token over TLS, by options and by the environment."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.certificates import Authority, replace
from tests.integration.serving import Served, serving

from dragoman import AsyncClient, Client
from dragoman.cli.main import main
from dragoman.client import Credentials, PermissionDeniedError, UnauthenticatedError, UnavailableError
from dragoman.client.channel import ChannelSettings
from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import make_token, token_line

MODELS = Path(__file__).parents[1] / "fixtures" / "bundles"
ONCE = ChannelSettings(max_attempts=1)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    authority = Authority.in_folder(tmp_path)
    lines = []
    for name in ("infer", "admin"):
        token = make_token()
        replace(tmp_path / f"{name}.token", token.encode())
        lines.append(token_line(token, name, [Scope(name)], None))
    replace(tmp_path / "tokens.toml", "\n".join(lines).encode())
    async with serving(
        MODELS, *authority.settings, f"security.tokens_file={tmp_path / 'tokens.toml'}"
    ) as served:
        yield served


async def test_clients(served: Served, tmp_path: Path) -> None:
    target = f"127.0.0.1:{served.server.port}"

    def credentials(name: str) -> Credentials:
        return Credentials(
            tls_ca=tmp_path / "ca.pem", tls_server_name="localhost", token_file=tmp_path / f"{name}.token"
        )

    def ask() -> None:
        with Client(target, credentials=credentials("infer"), timeout_s=10) as client:
            client.wait_until_serving()
            assert client.translate("12", model="spell")[0].text == "one two"
            assert "".join(client.generate("a b", model="count", max_tokens=2))
            assert [each.index for each in client.stream_translate("12", model="spell")]
        with Client(target, credentials=credentials("admin"), timeout_s=10) as client:
            assert client.models()
            with pytest.raises(PermissionDeniedError, match="needs the scope infer"):
                client.translate("12", model="spell")
        nobody = Credentials(tls_ca=tmp_path / "ca.pem")
        refused = pytest.raises(UnauthenticatedError, match="asks who calls")
        with Client(target, credentials=nobody, timeout_s=10) as client, refused:
            client.models()
        unanswered = pytest.raises(UnavailableError)
        with Client(target, credentials=Credentials(), settings=ONCE, timeout_s=10) as client, unanswered:
            client.models()

    await asyncio.to_thread(ask)
    async with AsyncClient(target, credentials=credentials("infer"), timeout_s=10) as client:
        await client.wait_until_serving()
        assert (await client.translate("12", model="spell"))[0].text == "one two"
        assert [piece async for piece in client.generate("a b", model="count", max_tokens=2)]


async def test_commands(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--target", f"localhost:{served.server.port}"]

    def run() -> None:
        options = ["--tls-ca", str(tmp_path / "ca.pem"), "--token-file", str(tmp_path / "infer.token")]
        capsys.readouterr()
        assert main(["translate", *target, "--model", "spell", *options, "12"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "one two"  # the server's log is here too
        assert main(["models", *target, "--tls-ca", str(tmp_path / "ca.pem")]) == 2
        assert "asks who calls" in capsys.readouterr().err
        monkeypatch.setenv("DRAGOMAN_TLS_CA", str(tmp_path / "ca.pem"))
        token = (tmp_path / "infer.token").read_text()
        monkeypatch.setenv("DRAGOMAN_TOKEN", token)
        assert main(["models", *target, "--json"]) == 0
        load = ["--duration", "0.2", "--warm-up", "0", "--concurrency", "1", "--json"]
        load += ["--inputs", str(tmp_path / "inputs")]
        (tmp_path / "inputs").write_text("12\n")
        assert main(["bench", *target, "--model", "spell", *load]) == 0
        assert main(["score", *target, "--model", "spell", "12", "one two"]) == 0
        captured = capsys.readouterr()
        assert '"credentials"' not in captured.out
        assert token not in captured.out + captured.err

    await asyncio.to_thread(run)
