"""`dragoman top` against real servers."""

import asyncio
import http.server
import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.certificates import Authority
from tests.integration.serving import serving

from dragoman.cli.main import main
from dragoman.client import AsyncClient
from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import make_token, token_line

BUNDLES = Path(__file__).parents[1] / "fixtures" / "bundles"
PATIENCE_S = 60.0


async def in_thread(*arguments: str) -> int:
    return await asyncio.to_thread(main, ["top", *arguments])


async def test_figures_are_those_of_the_calls(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(BUNDLES) as served:
        address = f"127.0.0.1:{served.server.metrics_port}"
        showing = asyncio.create_task(in_thread(address, "--once", "--json", "--interval", "1"))
        async with AsyncClient(f"127.0.0.1:{served.server.port}") as client:
            while not showing.done():
                await client.translate(["12"], model="spell")
        assert await showing == 0
        [line] = [json.loads(each) for each in capsys.readouterr().out.splitlines() if each.startswith("{")]
        assert line["servers"][address]["phase"] == "serving"
        count, spell = line["models"]
        assert (count["model"], count["calls"]) == ("count", 0.0)
        assert spell["calls"] > 0
        assert spell["tokens"] > spell["calls"], "an answer has several tokens"
        p50, p95, p99 = spell["latency_s"]
        assert 0 < p50 <= p95 <= p99 < PATIENCE_S
        assert spell["failed"] == 0


async def test_pages_behind_tls_and_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.in_folder(tmp_path)
    token = make_token()
    (tmp_path / "tokens.toml").write_text(token_line(token, "operator", [Scope.METRICS], None))
    (tmp_path / "token").write_text(token)
    (tmp_path / "ca.pem").write_bytes(authority.root)
    overrides = (
        *authority.settings,
        "security.http_tls=true",
        f"security.tokens_file={tmp_path / 'tokens.toml'}",
        "security.metrics_need_token=true",
    )
    async with serving(BUNDLES, *overrides) as served:
        address = f"127.0.0.1:{served.server.metrics_port}"
        ask = (address, "--once", "--interval", "0.1", "--tls-ca", str(tmp_path / "ca.pem"))
        assert await in_thread(*ask) == 1
        assert "401 Unauthorized" in capsys.readouterr().err
        assert await in_thread(*ask, "--token-file", str(tmp_path / "token")) == 0
        assert "spell/2" in capsys.readouterr().out
        assert await in_thread(address, "--once") == 1, "plain text to a TLS port"
        assert capsys.readouterr().err.startswith(f"error: no metrics from {address}: ")


async def test_a_terminal_shows_figures_until_q_is_pressed() -> None:
    async with serving(BUNDLES) as served:
        address = f"127.0.0.1:{served.server.metrics_port}"
        shown, code = await asyncio.to_thread(watch_in_terminal, address, "localhost:1")
    assert "no metrics from localhost:1: Connection refused" in shown
    assert code == 0


def watch_in_terminal(*addresses: str) -> tuple[str, int]:
    """What is shown until `q` is pressed, which is after three readings, and the exit code."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "dragoman", "top", *addresses, "--interval", "0.1"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment) as process:
        os.close(end)
        shown = read_until(terminal, lambda text: text.count("spell/2") >= 3)
        os.write(terminal, b"q")
        read_until(terminal, lambda text: "\x1b[?1049l" in text)  # the screen is as it was before
        code = process.wait(PATIENCE_S)
    os.close(terminal)
    return shown, code


def read_until(terminal: int, is_there: Callable[[str], bool]) -> str:
    """What a terminal shows, once it is what is waited for."""
    content = b""
    end_s = time.monotonic() + PATIENCE_S
    while not is_there(content.decode(errors="replace")):
        assert select.select([terminal], [], [], max(0.0, end_s - time.monotonic()))[0], content
        content += os.read(terminal, 1 << 16)
    return content.decode(errors="replace")


class OtherPage(http.server.BaseHTTPRequestHandler):
    """Metrics of another program, and what is no page of metrics at all."""

    pages = ("http_requests_total 1\n", "{]", "<html>")

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.pages[self.server.number].encode())  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "gives metrics, but none of dragoman serve"),
        (1, "gives no page of metrics"),
        (2, "gives no page of metrics"),
    ],
)
def test_pages_of_other_programs_are_named(
    number: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), OtherPage) as server:
        server.number = number  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert main(["top", f"127.0.0.1:{server.server_port}"]) == 1
        finally:
            server.shutdown()
            thread.join()
    error = capsys.readouterr().err
    assert error.startswith(f"error: 127.0.0.1:{server.server_port} {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("address", ["", "a b", "http://host:8002", "host:0", "host:99999", "host:port"])
def test_what_is_no_address_is_asked_wrongly(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", address]) == 2
    assert f"{address!r} is not HOST or HOST:PORT" in capsys.readouterr().err
